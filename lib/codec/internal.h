#pragma once
// Shared by the files of lib/codec.
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswresample/swresample.h>

#include "codec/codec.h"

static inline void codec_packet_free_p(AVPacket **p)
{
    av_packet_free(p);
}
static inline void codec_frame_free_p(AVFrame **f)
{
    av_frame_free(f);
}
void codec_context_free_p(AVCodecContext **c); // of a decoder or an encoder; codecs.c

// ---- input.c: a demuxer on a codec_source ----
// Bytes [at, at + n) of the source into dst. what: goes before the text of errors.
// errors  INVALID_ARGUMENT: the source does not have them; UNAVAILABLE: they could not be had
enum status codec_source_read(const struct codec_source *src, int64_t at, void *dst, int64_t n,
                              const char *what, struct err *err) MUST_CHECK;
struct codec_jumps {
    bool finding; // the list is being made
    bool too_many;
    bool is_exact; // the last one was told by pictures
    size_t n;
    struct media_jump list[MEDIA_MAX_JUMPS];
    // by stream: where its last packet was, when the next one is expected
    int64_t pos[MEDIA_MAX_TRACKS], next_us[MEDIA_MAX_TRACKS];
    bool seen[MEDIA_MAX_TRACKS];
};
// A demuxer's context on bytes of our own, which opens nothing else; NULL: out of memory.
AVFormatContext *codec_format_new(void *ud, int (*read)(void *ud, uint8_t *dst, int want),
                                  int64_t (*seek)(void *ud, int64_t offset, int whence));
// avformat_open_input() on such a context, with what it returns; *f is NULL when it fails.
int codec_format_open(AVFormatContext **f, const AVInputFormat *format, AVDictionary **options);
void codec_format_close(AVFormatContext **f); // *f may be NULL
struct codec_input {
    const struct codec_source *src;
    AVFormatContext *fmt;
    int64_t pos;
    bool failed;     // a needed byte could not be had
    bool sparse;     // do not fetch: what is not there reads as zeros (only its index matters)
    int64_t missing; // with failed: where
    struct codec_jumps jumps;
};
enum status codec_input_open(const struct codec_source *src, struct codec_input **ret,
                             struct err *err) MUST_CHECK;
// The same with MP4's edit lists left alone: times are the media's own (edits.c).
enum status codec_input_open_raw(const struct codec_source *src, struct codec_input **ret,
                                 struct err *err) MUST_CHECK;
// The same for packets of that stream as they are: its data is looked into only where the index
// does not say enough.
enum status codec_input_open_to_copy(const struct codec_source *src, int stream,
                                     struct codec_input **ret, struct err *err) MUST_CHECK;
void codec_input_close(struct codec_input *in);
DEFINE_AUTO(struct codec_input, codec_input_close)
// Status and text for what FFmpeg returned while doing `what`.
enum status codec_error(const struct codec_input *in, int av, const char *what, struct err *err);
// A decoder for that stream with our limits.
enum status codec_decoder_open(struct codec_input *in, int stream, unsigned threads,
                               AVCodecContext **ret, struct err *err) MUST_CHECK;
bool codec_is_mov(const struct codec_input *in);
bool codec_is_matroska(const struct codec_input *in);
// Go to where stream's time `ticks` (its own time base) can be decoded from; unknown: the
// beginning.
enum status codec_input_seek(struct codec_input *in, int stream, enum media_seek how, int64_t ticks,
                             int64_t offset, struct err *err) MUST_CHECK;
// The same for a sound: Matroska's index is about the picture, and searching for the sound itself
// would read the file up to there. Where it ends up may be seconds before `ticks`.
enum status codec_input_seek_sound(struct codec_input *in, const struct media_plan *plan,
                                   int stream, enum media_seek how, int64_t ticks,
                                   struct err *err) MUST_CHECK;

// ---- encoder.c: encoders by rendition, and what plans say about them ----
enum status codec_encoder_open(const struct media_rendition *r, AVCodecContext **ret,
                               struct err *err) MUST_CHECK;
// Recipe, digest, codecs string and init segment, by the decoder's configuration.
enum status codec_rendition_describe(struct media_rendition *r, const struct buf *config,
                                     struct err *err) MUST_CHECK;
// The same and the priming, from an opened encoder.
enum status codec_rendition_finish(struct media_rendition *r, struct err *err) MUST_CHECK;
// The decoder configuration that goes into the init segment, from an opened encoder.
enum status codec_encoder_config(const AVCodecContext *enc, enum media_codec codec, struct buf *ret,
                                 struct err *err) MUST_CHECK;
// That an opened encoder makes what the plan's init segment says.
enum status codec_encoder_matches(const AVCodecContext *enc, const struct media_plan *p,
                                  size_t rendition, struct err *err) MUST_CHECK;
// An encoder's packet in the form of a sample. Appends; false: the buffer is full.
bool codec_put_sample(struct buf *b, enum media_codec codec, const uint8_t *p, size_t n);

// ---- codecs.c: video codecs besides H.264 ----
bool codec_is_other_video(enum media_codec codec);
// The lazy rendition in that codec beside a finished one of the ladder: the same pictures. False:
// its name is too long.
bool codec_other_rung(const struct media_rendition *h264, enum media_codec codec,
                      struct media_rendition *ret);
void codec_set_other_video(AVCodecContext *c, const struct media_rendition *r, AVDictionary **o);
void codec_other_recipe(struct media_rendition *r);
// AV1's or VP9's configuration.
enum status codec_other_config(const AVCodecContext *enc, enum media_codec codec, struct buf *ret,
                               struct err *err) MUST_CHECK;
// Profile, level and RFC 6381 name, by the configuration.
void codec_name_other(struct media_rendition *r, const uint8_t *config);
// A temporal unit of AV1 as a sample. Appends; false: damaged, or the buffer is full.
bool codec_put_obus(struct buf *b, const uint8_t *p, size_t n);

// ---- nal.c: NAL units of H.264 and HEVC ----
struct codec_nal {
    const uint8_t *p;
    size_t n;
    unsigned type;
};
struct codec_nals { // a walk over the units of a packet
    enum media_codec codec;
    unsigned length_size; // bytes of the lengths before units; 0: start codes (Annex B)
    const uint8_t *p, *end;
    bool damaged; // a length goes past the end
};
void codec_nals_init(struct codec_nals *w, enum media_codec codec, unsigned length_size,
                     const void *bytes, size_t n);
bool codec_nals_next(struct codec_nals *w, struct codec_nal *ret);
bool codec_nal_is_set(enum media_codec codec, unsigned type);    // a parameter set
bool codec_nal_is_entry(enum media_codec codec, unsigned type);  // decoding can begin at it
bool codec_nal_is_remark(enum media_codec codec, unsigned type); // SEI
// Append the units with 4-byte lengths, without delimiters and parameter sets, and without SEI
// unless `remarks`. False: damaged, or the buffer is full.
bool codec_put_nals(struct buf *b, struct codec_nals *w, bool remarks);
// The decoder configuration record (avcC, hvcC) of a 4:2:0 stream, from extradata of either form;
// ret_length_size (may be NULL): of the stream's packets, 0 for start codes.
// errors: INVALID_ARGUMENT when there are no parameter sets; RESOURCE_EXHAUSTED
enum status codec_put_record(struct buf *b, enum media_codec codec, unsigned bit_depth,
                             const uint8_t *extradata, size_t n, unsigned *ret_length_size,
                             struct err *err) MUST_CHECK;
// Whether a record of ours holds exactly that parameter set.
bool codec_record_has(const uint8_t *record, size_t n, enum media_codec codec,
                      const struct codec_nal *set);
// RFC 6381 name by a record: "avc1.64001f", "hvc1.1.6.L93.90".
void codec_name_record(enum media_codec codec, const uint8_t *record, char *ret, size_t size);

// ---- picture.c: from decoded frames to a rung's picture ----
// What a decoded frame does not say about its colours, its container may.
void codec_frame_fill_colors(AVFrame *f, const AVCodecParameters *par);
int codec_frame_matrix(const AVFrame *f); // swscale's number of its colour matrix
struct codec_scaler;
// Scales from `from` (NULL: decoded frames, to be turned by `rotation`) to width x height yuv420p.
struct codec_scaler *codec_scaler_new(uint32_t width, uint32_t height, int rotation);
void codec_scaler_free(struct codec_scaler *s);
DEFINE_AUTO(struct codec_scaler, codec_scaler_free)
// A new frame (or a reference to `in` when nothing is to be done). Clockwise rotation.
enum status codec_scaler_run(struct codec_scaler *s, const AVFrame *in, AVFrame **ret,
                             struct err *err) MUST_CHECK;

// ---- edits.c: MP4's edit lists, read by ourselves ----
struct codec_edit {
    int64_t media_us, movie_us, duration_us; // what begins at media_us shows at movie_us
};
struct codec_edits {
    struct codec_edit *p;
    size_t n; // 0: the track has none, and times are as they are
};
// Those of the track of that id (tkhd). A file that is no MP4 has none.
// errors  INVALID_ARGUMENT: damaged, or too many; UNAVAILABLE
enum status codec_edits_read(const struct codec_source *src, uint32_t track_id,
                             struct codec_edits *ret, struct err *err) MUST_CHECK;
void codec_edits_done(struct codec_edits *e);

// ---- tonemap.c ----
bool codec_frame_is_hdr(const AVFrame *f); // PQ or HLG
struct codec_tonemap;
// For pictures with the transfer curve and the matrix of that one; NULL when out of memory.
struct codec_tonemap *codec_tonemap_new(const AVFrame *like);
void codec_tonemap_free(struct codec_tonemap *t);
// From yuv420p10, limited range, to BT.709 yuv420p of the same even size.
void codec_tonemap_run(const struct codec_tonemap *t, const AVFrame *in, AVFrame *out);

// ---- burn.c: subtitles that become part of the picture ----
// Reads the fonts that are always at hand. Without them only what brings its own can be burnt in.
void codec_burn_preload(void);
// Lazy renditions with subtitles burnt in, for each track that can be, from the ladder's.
enum status codec_burn_add(struct media_plan *p, struct err *err) MUST_CHECK;
void codec_burn_recipe(struct media_rendition *r); // adds to r->recipe what burning in says
struct codec_burner;
// Reads the track of that rendition as far as those segments show it. The plan is borrowed.
enum status codec_burner_new(const struct codec_source *src, const struct media_plan *plan,
                             size_t rendition, uint32_t first_segment, uint32_t n_segments,
                             struct codec_burner **ret, struct err *err) MUST_CHECK;
void codec_burner_free(struct codec_burner *b);
// Grid frame `frame` of that segment, in the rendition's size: what shows is laid over it. Frames
// of a segment come one after the other. f's data is replaced when it is shared.
enum status codec_burner_run(struct codec_burner *b, AVFrame *f, size_t segment, uint32_t frame,
                             struct err *err) MUST_CHECK;

// ---- jumps.c ----
bool codec_may_jump(const struct codec_input *in);
// av_read_frame(), on a clock that does not jump.
int codec_input_read(struct codec_input *in, AVPacket *pkt);
void codec_input_use_plan(struct codec_input *in, const struct media_plan *plan); // its jumps

// ---- charsets.c ----
void codec_charsets_load(void); // before confinement; idempotent

// ---- facts.c ----
int codec_rotation(const AVStream *st); // degrees clockwise: 0, 90, 180, 270
// Size as shown: upright, square pixels.
void codec_display_size(const AVStream *st, uint32_t *ret_w, uint32_t *ret_h);
// Text from outside: valid UTF-8 without control characters, or nothing. src may be NULL.
void codec_copy_text(char *dst, size_t size, const char *src);
void codec_tags(const struct codec_input *in, struct media_source *s); // tags.c
void codec_facts(const struct codec_input *in, struct media_source *s);

// ---- probe_sound.c: the sound of a probe ----
#define CODEC_MAX_SOUNDS 16 // tracks
struct codec_track_sound {
    int stream;
    int64_t first_packet, last_packet; // ticks
    int64_t first, end;                // ticks: what is heard begins, and packets end
    int64_t skip, trim; // samples that are not heard after first_packet and before `end`
    size_t n;           // packets
    int frame_samples;  // that three decoded frames in a row had, 0 none
};
struct codec_sounds {
    struct codec_track_sound t[CODEC_MAX_SOUNDS];
    size_t n;
};
// Every stream that may be decoded, and turn it on.
void codec_sounds_choose(struct codec_input *in, struct codec_sounds *ret);
// Decode the beginning of each: those that give nothing are left out and turned off. With none left
// the status is INVALID_ARGUMENT.
enum status codec_sounds_try(struct codec_input *in, struct codec_sounds *s,
                             struct err *err) MUST_CHECK;
void codec_sounds_note(struct codec_input *in, struct codec_sounds *s, const AVPacket *pkt);
// After the last packet: leave out those that had none, and apply what iTunes says about its files.
void codec_sounds_end(struct codec_input *in, struct codec_sounds *s);
int64_t codec_sounds_first_us(const struct codec_input *in, const struct codec_sounds *s);
// Choose the tracks, lay out the grid and the renditions. The timeline's zero is set.
enum status codec_sounds_plan(const struct codec_input *in, const struct codec_sounds *s,
                              struct media_plan *plan, struct err *err) MUST_CHECK;

// ---- packets.c: one stream's packets, kept while several decoders want them ----
struct codec_packets {
    struct codec_input *in;
    const struct media_plan *plan;
    int stream;
    enum media_seek how;
    bool goes_on; // reading on gives what seeking there would
    AVPacket **p;
    size_t n, cap;
    int64_t bytes;
    bool placed, ended;
    int64_t from; // ticks: nothing from then on is missing
};
void codec_packets_init(struct codec_packets *q, struct codec_input *in,
                        const struct media_plan *plan, int stream, enum media_seek how,
                        bool goes_on);
void codec_packets_done(struct codec_packets *q);
// Begin with the first packet that ends after `ticks` (unknown: with the first of all).
enum status codec_packets_begin(struct codec_packets *q, int64_t ticks, struct err *err) MUST_CHECK;
// The i-th since then, borrowed; NULL: the source ended.
enum status codec_packets_get(struct codec_packets *q, size_t i, const AVPacket **ret,
                              struct err *err) MUST_CHECK;
int64_t codec_packet_time(const AVPacket *pkt); // AV_NOPTS_VALUE when it has none
// 0 when it says none; at most MEDIA_MAX_DURATION_US, so that it can be added to any time.
int64_t codec_packet_duration_us(const AVPacket *pkt, AVRational tb);

// ---- mix.c: channels ----
#define CODEC_MAX_CHANNELS_IN 64
// Any format, layout and rate to planar floats of n_out (2 or 6) channels. Frees what *ret was.
enum status codec_mix_open(struct SwrContext **ret, const AVChannelLayout *from, int format,
                           int in_rate, int n_out, int out_rate, struct err *err) MUST_CHECK;

// ---- sound.c: a track as 48 kHz floats ----
struct codec_sound;
// channels  2 or 6. Turns off every other stream of the input; one at a time on an input.
enum status codec_sound_new(struct codec_input *in, const struct media_plan *plan, size_t track,
                            int channels, struct codec_sound **ret, struct err *err) MUST_CHECK;
void codec_sound_free(struct codec_sound *s);
DEFINE_AUTO(struct codec_sound, codec_sound_free)
// Presentation samples [begin, end) into side[channel][]; silence where there is none. What they
// are depends on begin and end alone. Windows in rising order read the source once.
enum status codec_sound_read(struct codec_sound *s, int64_t begin, int64_t end, float *const side[],
                             struct err *err) MUST_CHECK;
// Whether seeking by time finds the samples that reading from the beginning would.
bool codec_seek_is_exact(const struct codec_input *in);

// ---- flac.c ----
// A frame of fixed block size with that number, appended. False: not one, or no memory.
bool codec_put_flac_frame(struct buf *b, const uint8_t *p, size_t n, uint32_t number);

// ---- remux.c: renditions that are copies of the source's packets ----
struct codec_picture {    // what the probe knows of one, in order of presentation
    int64_t pts, pos;     // source ticks; byte offset
    uint32_t order, size; // which packet of the stream it is, and its bytes
    bool key;
};
// Cut the grid of copies at keyframes, once the video grid is made, when the source's pictures can
// be copied into its segments as they are. *ret_fits false: there are no copies.
enum status codec_copy_cut(struct codec_input *in, int stream, struct media_plan *plan,
                           const struct codec_picture *pics, size_t n, bool *ret_fits,
                           struct err *err) MUST_CHECK;
// Add the rendition "vcopy" to a plan that codec_copy_cut() has cut.
enum status codec_copy_add(const struct codec_input *in, int stream, struct media_plan *plan,
                           const struct codec_picture *pics, size_t n, struct err *err) MUST_CHECK;
enum status codec_copy_video(struct codec_input *in, const struct media_plan *plan,
                             const struct media_task *task, size_t rendition,
                             const struct codec_sink *sink, struct err *err) MUST_CHECK;

// ---- analyse.c ----
// Fit the plan's renditions, which are the bare H.264 ladder, to the film: media/title.h. Reads
// short runs of it, on the video grid's segments; leaves the input anywhere.
enum status codec_fit_ladder(struct codec_input *in, struct media_plan *plan, int stream,
                             int64_t video_bytes, struct err *err) MUST_CHECK;

// ---- video.c, audio.c ----
enum status codec_encode_video(struct codec_input *in, const struct media_plan *plan,
                               const struct media_task *task, const struct codec_sink *sink,
                               struct err *err) MUST_CHECK;
enum status codec_encode_audio(struct codec_input *in, const struct media_plan *plan,
                               const struct media_task *task, const struct codec_sink *sink,
                               struct err *err) MUST_CHECK;
