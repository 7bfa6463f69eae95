// A FLAC frame with another number. Each segment has an encoder of its own, which counts from 0;
// decoders and seekers expect the frame's place in the whole (RFC 9639, 9.1).
#include <libavutil/crc.h>

#include "codec/internal.h"

#define HEAD 4 // sync code, block size, rate, channels, sample size

// UTF-8's scheme up to 31 bits.
static size_t put_number(uint32_t v, uint8_t out[6])
{
    if (v < 0x80) {
        out[0] = (uint8_t)v;
        return 1;
    }
    size_t n = 2;
    while (n < 6 && v >> (5 * n + 1))
        n++;
    for (size_t i = n - 1; i > 0; i--, v >>= 6)
        out[i] = (uint8_t)(0x80 | (v & 0x3f));
    out[0] = (uint8_t)((0xff00 >> n) | v);
    return n;
}

static size_t number_len(uint8_t first)
{
    size_t n = 1;
    if (first >= 0xc0)
        for (uint8_t bit = 0x40; first & bit && n < 7; bit >>= 1)
            n++;
    return n;
}

bool codec_put_flac_frame(struct buf *b, const uint8_t *p, size_t n, uint32_t number)
{
    size_t from = b->len;
    uint8_t coded[6];
    if (n < HEAD + 4 || p[0] != 0xff || p[1] != 0xf8) // blocks of fixed size alone have numbers
        return false;
    unsigned size_code = p[2] >> 4, rate_code = p[2] & 15;
    size_t extra = (size_code == 6   ? 1U
                    : size_code == 7 ? 2U
                                     : 0U) +
                   (rate_code == 12   ? 1U
                    : rate_code == 13 ? 2U
                    : rate_code == 14 ? 2U
                                      : 0U);
    size_t after = HEAD + number_len(p[HEAD]);
    if (n < after + extra + 1 + 2)
        return false;
    buf_append(b, p, HEAD);
    buf_append(b, coded, put_number(number, coded));
    buf_append(b, p + after, extra);
    if (b->failed)
        return false;
    buf_put_u8(b,
               (uint8_t)av_crc(av_crc_get_table(AV_CRC_8_ATM), 0, b->data + from, b->len - from));
    buf_append(b, p + after + extra + 1, n - after - extra - 1 - 2);
    if (b->failed)
        return false;
    // The table's sums have their bytes the other way round.
    uint32_t crc = av_crc(av_crc_get_table(AV_CRC_16_ANSI), 0, b->data + from, b->len - from);
    buf_put_u8(b, (uint8_t)crc);
    return buf_put_u8(b, (uint8_t)(crc >> 8));
}
