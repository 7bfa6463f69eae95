// HDR to SDR: pictures in the light of BT.2100 (PQ or HLG, BT.2020 primaries) become BT.709.
//
// Every step of the way is a function of one colour, so the whole of it is a table over R'G'B' with
// a node at each 32nd code, between which colours are interpolated in whole numbers, in tetrahedra,
// which keeps greys grey. (Over Y'CbCr most nodes are colours that do not exist, and what lies
// between them and dark saturated ones was off by 20 codes.) The light above what SDR can show is
// bent by the curve of ITU-R BT.2390 (5.4.1), from 1000 to 203 cd/m2, which is the white of paper
// and captions in HDR (BT.2408); the peak that a file claims is not believed, because it may change
// from scene to scene, and a picture must come out the same wherever decoding began.
#include <math.h>

#include <libavutil/pixdesc.h>

#include "base/mem.h"
#include "codec/internal.h"

#define STEP_BITS 5
#define STEP (1 << STEP_BITS)
#define NODES ((1 << (10 - STEP_BITS)) + 1)
#define RED (NODES * NODES) // strides of the table
#define GREEN NODES
#define BLUE 1
#define FIXED 14 // bits after the point of the matrix
#define SCALE 64 // of a code of 8 bits in the table
#define HDR_PEAK 1000.0
#define SDR_WHITE 203.0

struct codec_tonemap {
    int32_t y, r_v, g_u, g_v, b_u;           // Y'CbCr of 10 bits, limited, to R'G'B' of 0..1023
    int16_t table[3][NODES * NODES * NODES]; // Y, Cb, Cr of the result
};

bool codec_frame_is_hdr(const AVFrame *f)
{
    return f->color_trc == AVCOL_TRC_SMPTE2084 || f->color_trc == AVCOL_TRC_ARIB_STD_B67;
}

// ---- curves; light in cd/m2 ----

// SMPTE ST 2084.
#define PQ_M1 0.1593017578125
#define PQ_M2 78.84375
#define PQ_C1 0.8359375
#define PQ_C2 18.8515625
#define PQ_C3 18.6875

static double pq_to_light(double v)
{
    double p = pow(v > 0 ? v : 0, 1 / PQ_M2), n = p - PQ_C1;
    return 10000 * pow((n > 0 ? n : 0) / (PQ_C2 - PQ_C3 * p), 1 / PQ_M1);
}

static double light_to_pq(double light)
{
    double p = pow(light > 0 ? light / 10000 : 0, PQ_M1);
    return pow((PQ_C1 + PQ_C2 * p) / (1 + PQ_C3 * p), PQ_M2);
}

// BT.2100, table 5: the scene's light of one channel, 0..1.
static double hlg_to_scene(double v)
{
    const double a = 0.17883277, b = 1 - 4 * a, c = 0.5 - a * log(4 * a);
    if (v <= 0)
        return 0;
    return v <= 0.5 ? v * v / 3 : (exp((v - c) / a) + b) / 12;
}

// BT.2390, 5.4.1: what is up to the knee stays, what is above bends towards the peak.
static double bend(double light)
{
    const double source = light_to_pq(HDR_PEAK), most = light_to_pq(SDR_WHITE) / source;
    const double knee = 1.5 * most - 0.5;
    double e = light_to_pq(light) / source;
    if (e > 1)
        e = 1;
    if (e > knee) {
        double t = (e - knee) / (1 - knee), t2 = t * t, t3 = t2 * t;
        e = (2 * t3 - 3 * t2 + 1) * knee + (t3 - 2 * t2 + t) * (1 - knee) +
            (-2 * t3 + 3 * t2) * most;
    }
    return pq_to_light(e * source);
}

// ---- one colour ----

// R'G'B' of BT.2100 to light.
static void to_light(double rgb[3], bool hlg)
{
    if (!hlg) {
        for (int i = 0; i < 3; i++)
            rgb[i] = pq_to_light(rgb[i] < 1 ? rgb[i] : 1);
        return;
    }
    for (int i = 0; i < 3; i++)
        rgb[i] = hlg_to_scene(rgb[i] < 1 ? rgb[i] : 1);
    double y = 0.2627 * rgb[0] + 0.6780 * rgb[1] + 0.0593 * rgb[2];
    double gain = y > 0 ? HDR_PEAK * pow(y, 0.2) : 0; // system gamma 1.2 at 1000 cd/m2
    for (int i = 0; i < 3; i++)
        rgb[i] *= gain;
}

// All channels by one factor, so that hues stay. The brightest one decides.
static void to_sdr_light(double rgb[3])
{
    double most = rgb[0] > rgb[1] ? rgb[0] : rgb[1];
    most = rgb[2] > most ? rgb[2] : most;
    double factor = most > 0 ? bend(most) / most / SDR_WHITE : 0;
    for (int i = 0; i < 3; i++)
        rgb[i] *= factor;
}

// BT.2020 primaries to BT.709's (BT.2087); what these cannot show is moved towards the grey of the
// same lightness until they can.
static void to_bt709(double rgb[3])
{
    static const double m[3][3] = {
        {1.6605, -0.5876, -0.0728}, {-0.1246, 1.1329, -0.0083}, {-0.0182, -0.1006, 1.1187}};
    double out[3], least = 0, most = 1, keep = 1;
    for (int i = 0; i < 3; i++)
        out[i] = m[i][0] * rgb[0] + m[i][1] * rgb[1] + m[i][2] * rgb[2];
    double y = 0.2126 * out[0] + 0.7152 * out[1] + 0.0722 * out[2];
    y = y < 0 ? 0 : y > 1 ? 1 : y;
    for (int i = 0; i < 3; i++) {
        least = out[i] < least ? out[i] : least;
        most = out[i] > most ? out[i] : most;
    }
    if (least < 0)
        keep = y / (y - least);
    if (most > 1 && (1 - y) / (most - y) < keep)
        keep = (1 - y) / (most - y);
    for (int i = 0; i < 3; i++)
        rgb[i] = y + (out[i] - y) * keep;
}

struct weights {
    double r, b; // of red and blue in Y
};
static const struct weights bt2020 = {0.2627, 0.0593}, bt709 = {0.2126, 0.0722};

static void to_yuv(const struct weights *w, const double rgb[3], double yuv[3])
{
    yuv[0] = w->r * rgb[0] + (1 - w->r - w->b) * rgb[1] + w->b * rgb[2];
    yuv[1] = (rgb[2] - yuv[0]) / (2 * (1 - w->b));
    yuv[2] = (rgb[0] - yuv[0]) / (2 * (1 - w->r));
}

// R'G'B' to Y'CbCr of 8 bits times SCALE.
static void map_color(bool hlg, double rgb[3], int16_t ret[3])
{
    double yuv[3];
    to_light(rgb, hlg);
    to_sdr_light(rgb);
    to_bt709(rgb);
    for (int i = 0; i < 3; i++)
        rgb[i] = pow(rgb[i] > 0 ? rgb[i] : 0, 1 / 2.4); // BT.1886
    to_yuv(&bt709, rgb, yuv);
    ret[0] = (int16_t)lrint((16 + 219 * yuv[0]) * SCALE);
    ret[1] = (int16_t)lrint((128 + 224 * yuv[1]) * SCALE);
    ret[2] = (int16_t)lrint((128 + 224 * yuv[2]) * SCALE);
}

static int32_t fixed(double v)
{
    return (int32_t)lrint(v * (1 << FIXED));
}

static void set_matrix(struct codec_tonemap *t, const struct weights *w)
{
    const double chroma = 1023 / 896.0, g = 1 - w->r - w->b;
    t->y = fixed(1023 / 876.0);
    t->r_v = fixed(2 * (1 - w->r) * chroma);
    t->b_u = fixed(2 * (1 - w->b) * chroma);
    t->g_u = fixed(-2 * (1 - w->b) * w->b / g * chroma);
    t->g_v = fixed(-2 * (1 - w->r) * w->r / g * chroma);
}

struct codec_tonemap *codec_tonemap_new(const AVFrame *like)
{
    struct codec_tonemap *t = mem_alloc(sizeof(*t));
    if (!t)
        return NULL;
    bool hlg = like->color_trc == AVCOL_TRC_ARIB_STD_B67;
    set_matrix(t, like->colorspace == AVCOL_SPC_BT709 ? &bt709 : &bt2020);
    for (int i = 0; i < NODES * NODES * NODES; i++) {
        const int node[3] = {i / RED, i / GREEN % NODES, i % NODES};
        double rgb[3];
        int16_t out[3];
        for (int k = 0; k < 3; k++)
            rgb[k] = node[k] * STEP / 1023.0;
        map_color(hlg, rgb, out);
        for (int p = 0; p < 3; p++)
            t->table[p][i] = out[p];
    }
    return t;
}

void codec_tonemap_free(struct codec_tonemap *t)
{
    mem_free(t);
}

// ---- pictures ----

struct place { // in the table: a node, and steps to the other corners of a tetrahedron
    int at[4], weight[4];
};

static void swap_if_less(int *a, int *b)
{
    int x = *a, y = *b;
    *a = x > y ? x : y;
    *b = x > y ? y : x;
}

static int clamp10(int32_t v)
{
    v >>= FIXED;
    return v < 0 ? 0 : v > 1023 ? 1023 : v;
}

// The fractions in falling order, each with its stride in the bits below.
static struct place place_of(int r, int g, int b)
{
    int f1 = (r & (STEP - 1)) << 12 | RED, f2 = (g & (STEP - 1)) << 12 | GREEN,
        f3 = (b & (STEP - 1)) << 12 | BLUE;
    swap_if_less(&f1, &f2);
    swap_if_less(&f2, &f3);
    swap_if_less(&f1, &f2);
    int base = (r >> STEP_BITS) * RED + (g >> STEP_BITS) * GREEN + (b >> STEP_BITS) * BLUE;
    int s1 = base + (f1 & 4095), s2 = s1 + (f2 & 4095), s3 = s2 + (f3 & 4095);
    return (struct place){
        {base, s1, s2, s3},
        {STEP - (f1 >> 12), (f1 >> 12) - (f2 >> 12), (f2 >> 12) - (f3 >> 12), f3 >> 12}};
}

static uint8_t between(const int16_t *table, const struct place *p)
{
    int sum = STEP * SCALE / 2;
    for (int i = 0; i < 4; i++)
        sum += p->weight[i] * table[p->at[i]];
    sum /= STEP * SCALE;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static const uint16_t *line10(const AVFrame *f, int plane, int y)
{
    return (const uint16_t *)(const void *)(f->data[plane] + (ptrdiff_t)y * f->linesize[plane]);
}

// The 2x2 pixels of luma that share one of chroma.
struct block {
    int32_t r, g, b; // what chroma adds
    int sum;         // of luma codes
};

static struct place place_in(const struct codec_tonemap *t, const struct block *k, int y)
{
    int32_t luma = (y - 64) * t->y + (1 << (FIXED - 1));
    return place_of(clamp10(luma + k->r), clamp10(luma + k->g), clamp10(luma + k->b));
}

static struct block block_of(const struct codec_tonemap *t, int u, int v)
{
    u -= 512;
    v -= 512;
    return (struct block){v * t->r_v, u * t->g_u + v * t->g_v, u * t->b_u, 2};
}

static uint8_t map_luma(const struct codec_tonemap *t, struct block *k, int code)
{
    struct place p = place_in(t, k, code);
    k->sum += code;
    return between(t->table[0], &p);
}

void codec_tonemap_run(const struct codec_tonemap *t, const AVFrame *in, AVFrame *out)
{
    for (int y = 0; y < out->height; y += 2) {
        const uint16_t *a = line10(in, 0, y), *b = line10(in, 0, y + 1);
        const uint16_t *u = line10(in, 1, y / 2), *v = line10(in, 2, y / 2);
        uint8_t *to_a = out->data[0] + (ptrdiff_t)y * out->linesize[0];
        uint8_t *to_b = to_a + out->linesize[0];
        uint8_t *to_u = out->data[1] + (ptrdiff_t)(y / 2) * out->linesize[1];
        uint8_t *to_v = out->data[2] + (ptrdiff_t)(y / 2) * out->linesize[2];
        for (int x = 0; x < out->width; x += 2) {
            struct block k = block_of(t, u[x / 2] & 1023, v[x / 2] & 1023);
            to_a[x] = map_luma(t, &k, a[x] & 1023);
            to_a[x + 1] = map_luma(t, &k, a[x + 1] & 1023);
            to_b[x] = map_luma(t, &k, b[x] & 1023);
            to_b[x + 1] = map_luma(t, &k, b[x + 1] & 1023);
            struct place p = place_in(t, &k, k.sum / 4);
            to_u[x / 2] = between(t->table[1], &p);
            to_v[x / 2] = between(t->table[2], &p);
        }
    }
}
