// NAL units of H.264 and HEVC: from start codes or length prefixes to the form that samples have
// (14496-15: four-byte lengths, parameter sets in the sample entry alone), and the decoder
// configuration records.
#include <stdio.h>
#include <string.h>

#include "codec/internal.h"

enum { AVC_IDR = 5, AVC_SPS = 7, AVC_PPS = 8, AVC_AUD = 9, AVC_FILLER = 12 };
enum {
    HEVC_FIRST_IRAP = 16,
    HEVC_LAST_IRAP = 23,
    HEVC_VPS = 32,
    HEVC_SPS = 33,
    HEVC_PPS = 34,
    HEVC_AUD = 35,
    HEVC_EOB = 37,
    HEVC_FILLER = 38
};
#define MAX_SETS 16 // parameter sets of one stream
#define MAX_SET_BYTES 1024

// ---- walking ----

// The next unit after a start code at or after p: its bytes and length; NULL at the end.
static const uint8_t *after_start_code(const uint8_t *p, const uint8_t *end, size_t *ret_len)
{
    while (end - p >= 4 && !(p[0] == 0 && p[1] == 0 && p[2] == 1))
        p++;
    if (end - p < 4)
        return NULL;
    const uint8_t *nal = p += 3;
    while (end - p >= 3 && !(p[0] == 0 && p[1] == 0 && p[2] <= 1))
        p++;
    if (end - p < 3)
        p = end;
    while (p > nal && p[-1] == 0) // trailing zeros belong to no unit
        p--;
    *ret_len = (size_t)(p - nal);
    return nal;
}

static bool after_length(struct codec_nals *w, const uint8_t **ret, size_t *ret_len)
{
    size_t n = 0;
    if (w->p == w->end)
        return false;
    if ((size_t)(w->end - w->p) < w->length_size) {
        w->damaged = true;
        return false;
    }
    for (unsigned i = 0; i < w->length_size; i++)
        n = n << 8 | *w->p++;
    if (n > (size_t)(w->end - w->p)) {
        w->damaged = true;
        return false;
    }
    *ret = w->p;
    *ret_len = n;
    return true;
}

void codec_nals_init(struct codec_nals *w, enum media_codec codec, unsigned length_size,
                     const void *bytes, size_t n)
{
    *w = (struct codec_nals){
        .codec = codec, .length_size = length_size, .p = bytes, .end = (const uint8_t *)bytes + n};
}

bool codec_nals_next(struct codec_nals *w, struct codec_nal *ret)
{
    for (;;) {
        const uint8_t *p;
        size_t n;
        if (w->length_size ? !after_length(w, &p, &n) : !(p = after_start_code(w->p, w->end, &n)))
            return false;
        w->p = p + n;
        if (n < (w->codec == MEDIA_CODEC_HEVC ? 3U : 1U))
            continue;
        *ret = (struct codec_nal){
            p, n, w->codec == MEDIA_CODEC_HEVC ? (unsigned)p[0] >> 1 & 63 : p[0] & 31U};
        return true;
    }
}

bool codec_nal_is_set(enum media_codec codec, unsigned type)
{
    return codec == MEDIA_CODEC_HEVC ? type >= HEVC_VPS && type <= HEVC_PPS
                                     : type == AVC_SPS || type == AVC_PPS;
}

bool codec_nal_is_entry(enum media_codec codec, unsigned type)
{
    return codec == MEDIA_CODEC_HEVC ? type >= HEVC_FIRST_IRAP && type <= HEVC_LAST_IRAP
                                     : type == AVC_IDR;
}

// What a sample of ours does not hold: parameter sets, delimiters, ends, filling.
static bool is_left_out(enum media_codec codec, unsigned type)
{
    if (codec_nal_is_set(codec, type))
        return true;
    return codec == MEDIA_CODEC_HEVC ? type >= HEVC_AUD && type <= HEVC_FILLER
                                     : type >= AVC_AUD && type <= AVC_FILLER;
}

bool codec_nal_is_remark(enum media_codec codec, unsigned type)
{
    return codec == MEDIA_CODEC_HEVC ? type == 39 || type == 40 : type == 6;
}

bool codec_put_nals(struct buf *b, struct codec_nals *w, bool remarks)
{
    struct codec_nal nal;
    while (codec_nals_next(w, &nal)) {
        if (is_left_out(w->codec, nal.type) ||
            (!remarks && codec_nal_is_remark(w->codec, nal.type)))
            continue;
        buf_put_be32(b, (uint32_t)nal.n);
        buf_append(b, nal.p, nal.n);
    }
    return !b->failed && !w->damaged;
}

// ---- parameter sets ----

struct sets {
    struct codec_nal all[MAX_SETS];
    size_t n;
};

static bool add_set(struct sets *s, struct codec_nal nal)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->all[i].n == nal.n && memcmp(s->all[i].p, nal.p, nal.n) == 0)
            return true;
    if (s->n == MAX_SETS || nal.n > MAX_SET_BYTES)
        return false;
    s->all[s->n++] = nal;
    return true;
}

static size_t count(const struct sets *s, unsigned type)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        n += s->all[i].type == type;
    return n;
}

static const struct codec_nal *first(const struct sets *s, unsigned type)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->all[i].type == type)
            return &s->all[i];
    return NULL;
}

static bool read_run(struct reader *r, enum media_codec codec, size_t n, struct sets *s)
{
    for (; n > 0; n--) {
        size_t len = reader_be16(r);
        const uint8_t *p = reader_bytes(r, len);
        bool hevc = codec == MEDIA_CODEC_HEVC;
        if (!p || len < (hevc ? 3 : 4))
            return false;
        struct codec_nal nal = {p, len, hevc ? (unsigned)p[0] >> 1 & 63 : p[0] & 31U};
        if (codec_nal_is_set(codec, nal.type) && !add_set(s, nal))
            return false;
    }
    return true;
}

// The sets of an avcC or hvcC record (14496-15, 5.3.3 and 8.3.3).
static bool read_record(enum media_codec codec, const uint8_t *p, size_t n, struct sets *s,
                        unsigned *ret_length_size)
{
    struct reader r;
    reader_init(&r, p, n);
    if (codec == MEDIA_CODEC_HEVC) {
        const uint8_t *head = reader_bytes(&r, 22);
        if (!head)
            return false;
        *ret_length_size = (head[21] & 3U) + 1;
        for (unsigned arrays = reader_u8(&r); arrays > 0; arrays--) {
            (void)reader_u8(&r);
            if (!read_run(&r, codec, reader_be16(&r), s))
                return false;
        }
        return !r.failed;
    }
    const uint8_t *head = reader_bytes(&r, 5);
    if (!head)
        return false;
    *ret_length_size = (head[4] & 3U) + 1;
    return read_run(&r, codec, reader_u8(&r) & 31U, s) && read_run(&r, codec, reader_u8(&r), s) &&
           !r.failed;
}

static bool read_sets(enum media_codec codec, const uint8_t *p, size_t n, struct sets *s,
                      unsigned *ret_length_size)
{
    *ret_length_size = 0;
    if (n > 4 && p[0] == 1)
        return read_record(codec, p, n, s, ret_length_size);
    struct codec_nals w;
    struct codec_nal nal;
    codec_nals_init(&w, codec, 0, p, n);
    while (codec_nals_next(&w, &nal))
        if (codec_nal_is_set(codec, nal.type) && !add_set(s, nal))
            return false;
    return true;
}

// ---- records ----

static void put_run(struct buf *b, const struct sets *s, unsigned type)
{
    for (size_t i = 0; i < s->n; i++) {
        if (s->all[i].type != type)
            continue;
        buf_put_be16(b, (uint16_t)s->all[i].n);
        buf_append(b, s->all[i].p, s->all[i].n);
    }
}

// AVCDecoderConfigurationRecord (5.3.3.1.2) of a 4:2:0 stream with 8 bits a sample.
static bool put_avcc(struct buf *b, const struct sets *s)
{
    const struct codec_nal *sps = first(s, AVC_SPS);
    if (!sps || !first(s, AVC_PPS) || sps->n < 4)
        return false;
    buf_put_u8(b, 1);
    buf_append(b, sps->p + 1, 3);
    buf_put_u8(b, 0xff); // 4-byte lengths
    buf_put_u8(b, (uint8_t)(0xe0 | count(s, AVC_SPS)));
    put_run(b, s, AVC_SPS);
    buf_put_u8(b, (uint8_t)count(s, AVC_PPS));
    put_run(b, s, AVC_PPS);
    if (sps->p[1] >= 100) {
        buf_put_u8(b, 0xfd); // 4:2:0
        buf_put_u8(b, 0xf8);
        buf_put_u8(b, 0xf8);
        buf_put_u8(b, 0);
    }
    return true;
}

// The first bytes of a unit without its emulation prevention (a 3 after two zeros).
static size_t unescape(const struct codec_nal *nal, uint8_t *out, size_t max)
{
    size_t n = 0, zeros = 0;
    for (size_t i = 0; i < nal->n && n < max; i++) {
        if (zeros >= 2 && nal->p[i] == 3) {
            zeros = 0;
            continue;
        }
        zeros = nal->p[i] == 0 ? zeros + 1 : 0;
        out[n++] = nal->p[i];
    }
    return n;
}

// HEVCDecoderConfigurationRecord (8.3.3.1.2) of a 4:2:0 stream. Profile, tier and level lie at a
// fixed place of the sequence parameter set: after its two bytes of header and one of counts.
static bool put_hvcc(struct buf *b, const struct sets *s, unsigned bit_depth)
{
    static const unsigned types[] = {HEVC_VPS, HEVC_SPS, HEVC_PPS};
    const struct codec_nal *sps = first(s, HEVC_SPS);
    uint8_t head[15];
    if (!sps || !first(s, HEVC_VPS) || !first(s, HEVC_PPS) ||
        unescape(sps, head, sizeof(head)) < sizeof(head))
        return false;
    unsigned layers = (head[2] >> 1 & 7U) + 1, nested = head[2] & 1U;
    buf_put_u8(b, 1);
    buf_append(b, head + 3, 12);
    buf_put_be16(b, 0xf000); // segmentation not known
    buf_put_u8(b, 0xfc);     // parallelism not known
    buf_put_u8(b, 0xfd);     // 4:2:0
    buf_put_u8(b, (uint8_t)(0xf8 | (bit_depth - 8)));
    buf_put_u8(b, (uint8_t)(0xf8 | (bit_depth - 8)));
    buf_put_be16(b, 0); // mean frame rate not said
    buf_put_u8(b, (uint8_t)(layers << 3 | nested << 2 | 3));
    buf_put_u8(b, N_ELEMENTS(types));
    for (size_t i = 0; i < N_ELEMENTS(types); i++) {
        buf_put_u8(b, (uint8_t)(0x80 | types[i])); // complete: none in the samples
        buf_put_be16(b, (uint16_t)count(s, types[i]));
        put_run(b, s, types[i]);
    }
    return true;
}

enum status codec_put_record(struct buf *b, enum media_codec codec, unsigned bit_depth,
                             const uint8_t *extradata, size_t n, unsigned *ret_length_size,
                             struct err *err)
{
    struct sets s = {.n = 0};
    unsigned length_size = 0;
    bool ok = extradata && read_sets(codec, extradata, n, &s, &length_size) &&
              (codec == MEDIA_CODEC_HEVC ? put_hvcc(b, &s, bit_depth) : put_avcc(b, &s));
    if (!ok)
        return err_set(err, STATUS_INVALID_ARGUMENT, "no usable parameter sets");
    if (ret_length_size)
        *ret_length_size = length_size;
    return b->failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "parameter sets: out of memory")
                     : STATUS_OK;
}

bool codec_record_has(const uint8_t *record, size_t n, enum media_codec codec,
                      const struct codec_nal *set)
{
    struct sets s = {.n = 0};
    unsigned length_size;
    if (!read_record(codec, record, n, &s, &length_size))
        return false;
    for (size_t i = 0; i < s.n; i++)
        if (s.all[i].n == set->n && memcmp(s.all[i].p, set->p, set->n) == 0)
            return true;
    return false;
}

// ---- names ----

// 14496-15, E.3: profile, compatibility flags with their order turned, tier and level, and the
// constraint bytes but for zeros at the end.
static void name_hevc(const uint8_t *c, char *ret, size_t size)
{
    uint32_t flags = (uint32_t)c[2] << 24 | (uint32_t)c[3] << 16 | (uint32_t)c[4] << 8 | c[5],
             turned = 0;
    for (unsigned i = 0; i < 32; i++)
        turned |= (flags >> i & 1U) << (31 - i);
    int constraints = 6;
    while (constraints > 0 && c[6 + constraints - 1] == 0)
        constraints--;
    int n = snprintf(ret, size, "hvc1.%s%u.%X.%c%u", (const char *[]){"", "A", "B", "C"}[c[1] >> 6],
                     c[1] & 31U, turned, c[1] & 0x20 ? 'H' : 'L', c[12]);
    for (int i = 0; i < constraints && n > 0 && (size_t)n < size; i++)
        n += snprintf(ret + n, size - (size_t)n, ".%X", c[6 + i]);
}

void codec_name_record(enum media_codec codec, const uint8_t *record, char *ret, size_t size)
{
    if (codec == MEDIA_CODEC_HEVC)
        name_hevc(record, ret, size);
    else
        snprintf(ret, size, "avc1.%02x%02x%02x", record[1], record[2], record[3]);
}
