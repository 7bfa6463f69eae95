"""Real files of many kinds: uploaded, transcoded and played to the end, as long as they were."""

from platform_fixture import PlatformTest, ffprobe, main, media

# file, kinds of streams played, frames of the picture as made (None: a variable or repaired rate)
FILES = [
    ("video/crowd_720x400_h264_5s.mp4", {"video"}, 150),
    ("video/crystal_720x480_prores_pcm.mov", {"video", "audio"}, 60),
    ("video/desk_352x288_h263_aac.3gp", {"video", "audio"}, None),
    ("video/dog_1080p_vfr_h264_aac.mp4", {"video", "audio"}, None),
    ("video/nasa_2video_2audio_2movtext.mp4", {"video", "audio"}, None),
    ("video/phone_568x320_rot90_h264.mov", {"video", "audio"}, None),
    ("video/puck_400x300_mpeg4asp.avi", {"video"}, None),
    ("video/race1906_214x160_theora.ogv", {"video"}, None),
    ("video/sar_2to1_640x360_h264.mp4", {"video"}, 150),
    ("video/street_640x360_vp9_opus_10s.webm", {"video", "audio"}, 301),
    ("audio/guitar_alac_6s.m4a", {"audio"}, None),
    ("audio/ring_opus_12s.mka", {"audio"}, None),
    ("audio/score_31s.mp3", {"audio"}, None),
    ("audio/six_channels_51.ac3", {"audio"}, None),
]


class Media(PlatformTest):
    @classmethod
    def setUpClass(cls):
        media(FILES[0][0])
        super().setUpClass()
        cls.register("seller")

    @staticmethod
    def length(path):
        """Seconds of the longest picture or sound; subtitles may go on after them."""
        r = ffprobe(path, "-show_streams", "-show_format")
        streams = [float(s["duration"]) for s in r["streams"] if s["codec_type"] in ("video", "audio") and "duration" in s]
        return max(streams, default=float(r["format"]["duration"]))

    def test_every_file_plays_to_its_end(self):
        for name, kinds, frames in FILES:
            with self.subTest(name):
                path = media(name)
                item = self.upload("seller", path, "--wait")["item_id"]
                out = self.path("out.mp4")
                self.ctl("seller", "play", item, "--never-direct", "--out", out)
                want = self.length(path)
                got = ffprobe(out, "-show_streams", "-show_format", "-count_packets")
                self.assertAlmostEqual(float(got["format"]["duration"]), want, delta=0.25)
                self.assertEqual({s["codec_type"] for s in got["streams"]}, kinds)
                for s in got["streams"]:
                    if s["codec_type"] == "video":
                        self.assertEqual(s["width"] % 2 + s["height"] % 2, 0)
                        if frames:
                            self.assertEqual(int(s["nb_read_packets"]), frames)
                        if "rot90" in name:
                            self.assertLess(s["width"], s["height"], "stands upright")
                        if "sar_2to1" in name:
                            self.assertGreater(s["width"] / s["height"], 3, "square pixels")


if __name__ == "__main__":
    main()
