// Which channels of the source go where. Down-mixes follow ITU-R BS.775-3, annex 4: front 1, centre
// and surround -3 dB, the low-frequency channel left out of stereo. The whole is turned down until
// no sum of full-scale channels can clip, so that the balance between them stays: 5.1 to stereo by
// 7.66 dB. One channel goes to both sides at its own level, as players do with mono files.
#include <libavutil/channel_layout.h>
#include <libavutil/opt.h>

#include "codec/internal.h"

#define MINUS_3_DB 0.70710678118654752

enum { FRONT_LEFT, FRONT_RIGHT, CENTRE, LOW, BACK_LEFT, BACK_RIGHT }; // order of 5.1 outputs

// One input channel in a stereo mix.
static void into_stereo(enum AVChannel c, double to[2])
{
    switch (c) {
    case AV_CHAN_FRONT_LEFT:
    case AV_CHAN_STEREO_LEFT:
    case AV_CHAN_WIDE_LEFT:
    case AV_CHAN_TOP_FRONT_LEFT:
        to[0] = 1;
        break;
    case AV_CHAN_FRONT_RIGHT:
    case AV_CHAN_STEREO_RIGHT:
    case AV_CHAN_WIDE_RIGHT:
    case AV_CHAN_TOP_FRONT_RIGHT:
        to[1] = 1;
        break;
    case AV_CHAN_FRONT_LEFT_OF_CENTER:
    case AV_CHAN_BACK_LEFT:
    case AV_CHAN_SIDE_LEFT:
    case AV_CHAN_SURROUND_DIRECT_LEFT:
    case AV_CHAN_TOP_SIDE_LEFT:
    case AV_CHAN_TOP_BACK_LEFT:
        to[0] = MINUS_3_DB;
        break;
    case AV_CHAN_FRONT_RIGHT_OF_CENTER:
    case AV_CHAN_BACK_RIGHT:
    case AV_CHAN_SIDE_RIGHT:
    case AV_CHAN_SURROUND_DIRECT_RIGHT:
    case AV_CHAN_TOP_SIDE_RIGHT:
    case AV_CHAN_TOP_BACK_RIGHT:
        to[1] = MINUS_3_DB;
        break;
    case AV_CHAN_LOW_FREQUENCY:
    case AV_CHAN_LOW_FREQUENCY_2:
        break;
    case AV_CHAN_BACK_CENTER:
    case AV_CHAN_TOP_BACK_CENTER:
        to[0] = to[1] = 0.5; // -3 dB as surround, -3 dB to each side
        break;
    default: // the centre, and what has no place
        to[0] = to[1] = MINUS_3_DB;
        break;
    }
}

// One input channel in 5.1. `both`: the source has sides and backs, which share two outputs.
static void into_surround(enum AVChannel c, bool both, double to[6])
{
    double surround = both ? MINUS_3_DB : 1, two[2] = {0, 0};
    switch (c) {
    case AV_CHAN_FRONT_CENTER:
        to[CENTRE] = 1;
        break;
    case AV_CHAN_LOW_FREQUENCY:
        to[LOW] = 1;
        break;
    case AV_CHAN_BACK_LEFT:
    case AV_CHAN_SIDE_LEFT:
        to[BACK_LEFT] = surround;
        break;
    case AV_CHAN_BACK_RIGHT:
    case AV_CHAN_SIDE_RIGHT:
        to[BACK_RIGHT] = surround;
        break;
    case AV_CHAN_BACK_CENTER:
        to[BACK_LEFT] = to[BACK_RIGHT] = MINUS_3_DB * surround;
        break;
    default:
        into_stereo(c, two);
        to[FRONT_LEFT] = two[0];
        to[FRONT_RIGHT] = two[1];
        break;
    }
}

static bool has(const AVChannelLayout *l, enum AVChannel c)
{
    return av_channel_layout_index_from_channel(l, c) >= 0;
}

static void turn_down(double *m, int n_in, int n_out)
{
    double most = 1;
    for (int o = 0; o < n_out; o++) {
        double sum = 0;
        for (int i = 0; i < n_in; i++)
            sum += m[o * n_in + i];
        most = sum > most ? sum : most;
    }
    for (int i = 0; i < n_in * n_out; i++)
        m[i] /= most;
}

// m: n_out rows of the layout's channels.
static void fill(const AVChannelLayout *in, int n_out, double *m)
{
    int n = in->nb_channels;
    bool both = has(in, AV_CHAN_SIDE_LEFT) && has(in, AV_CHAN_BACK_LEFT);
    for (int i = 0; i < n; i++) {
        double to[6] = {0};
        enum AVChannel c = av_channel_layout_channel_from_index(in, (unsigned)i);
        if (n == 1)
            to[0] = to[1] = 1;
        else if (n_out == 2 && in->order == AV_CHANNEL_ORDER_UNSPEC)
            to[i % 2] = 1; // nothing is known: pairs
        else if (n_out == 2)
            into_stereo(c, to);
        else
            into_surround(c, both, to);
        for (int o = 0; o < n_out; o++)
            m[o * n + i] = to[o];
    }
    turn_down(m, n, n_out);
}

static enum status failed(int av, int channels, struct err *err)
{
    return err_set(err, av == AVERROR(ENOMEM) ? STATUS_RESOURCE_EXHAUSTED : STATUS_INVALID_ARGUMENT,
                   "sound of %d channels cannot be converted", channels);
}

enum status codec_mix_open(struct SwrContext **ret, const AVChannelLayout *from, int format,
                           int in_rate, int n_out, int out_rate, struct err *err)
{
    AVChannelLayout out = n_out == 2 ? (AVChannelLayout)AV_CHANNEL_LAYOUT_STEREO
                                     : (AVChannelLayout)AV_CHANNEL_LAYOUT_5POINT1_BACK;
    AVChannelLayout in = {0};
    double m[CODEC_MAX_CHANNELS_IN * MEDIA_MAX_CHANNELS];
    swr_free(ret);
    int n = from->nb_channels;
    if (n < 1 || n > CODEC_MAX_CHANNELS_IN)
        return failed(AVERROR(EINVAL), n, err);
    // Channels without places: the usual ones for that many.
    if (from->order == AV_CHANNEL_ORDER_UNSPEC || from->order == AV_CHANNEL_ORDER_CUSTOM)
        av_channel_layout_default(&in, n);
    else if (av_channel_layout_copy(&in, from) < 0)
        return failed(AVERROR(ENOMEM), n, err);
    int r =
        swr_alloc_set_opts2(ret, &out, AV_SAMPLE_FMT_FLTP, out_rate, &in, format, in_rate, 0, NULL);
    if (r >= 0 && av_channel_layout_compare(&in, &out) != 0) {
        fill(&in, n_out, m);
        r = swr_set_matrix(*ret, m, n);
    }
    if (r >= 0)
        r = swr_init(*ret);
    av_channel_layout_uninit(&in);
    if (r >= 0)
        return STATUS_OK;
    swr_free(ret);
    return failed(r, n, err);
}
