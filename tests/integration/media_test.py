"""Every real file: uploaded, planned, played to the end, with the source's pictures and as long as it."""

import concurrent.futures
import os
import unittest

from platform_fixture import DATA, PlatformTest, ffprobe, main

# Sources with gaps, where a picture stands for those that are missing: how many are more than can be decoded.
GAPS = {
    "video/bbb_1080p24_mpeg2_mp2.ts": 2,  # begins with pictures that refer to ones that are not there
    "video/bbb_1080p25_h264_aac51_30s.mp4": 49,  # joined from pieces
    "video/desk_352x288_h263_aac.3gp": 1,  # a still of over a second
    "video/road_1080p25_h264_aac_24s.mp4": 3,
}
SECONDS = 240  # that one file may take, on a busy machine


def names():
    root = os.path.join(DATA, "media")
    return sorted(f"{kind}/{name}" for kind in ("audio", "video") if os.path.isdir(os.path.join(root, kind))
                  for name in os.listdir(os.path.join(root, kind)))


def length(stream):
    """Seconds; 0 when it does not say."""
    if "duration" in stream:
        return float(stream["duration"])
    h, m, s = stream.get("tags", {}).get("DURATION", "0:0:0").split(":")
    return int(h) * 3600 + int(m) * 60 + float(s)


class Media(PlatformTest):
    @classmethod
    def setUpClass(cls):
        if not names():
            raise unittest.SkipTest(f"no media in {DATA}/media: set CAUCE_TEST_DATA")
        super().setUpClass()
        cls.register("seller")

    @staticmethod
    def source(path):
        """Pictures of the largest video and seconds of the longest picture or sound; subtitles may go on after them."""
        r = ffprobe(path, "-show_streams", "-show_format", "-count_frames")
        streams = [s for s in r["streams"] if not s.get("disposition", {}).get("attached_pic")]
        videos = [s for s in streams if s["codec_type"] == "video"]
        largest = max(videos, key=lambda s: s["width"] * s["height"], default=None)
        seconds = [length(s) for s in streams if s["codec_type"] in ("video", "audio")]
        kinds = {s["codec_type"] for s in streams} & {"video", "audio"}
        return kinds, largest and int(largest["nb_read_frames"]), max(seconds, default=0) or float(r["format"]["duration"])

    def play(self, name):
        """The smallest pictures and the sound of it, to the end; then nothing more of it is made."""
        path = os.path.join(DATA, "media", name)
        item = self.upload("seller", path)["item_id"]
        tail = self.events("seller")
        end = self.until(tail, lambda e: e["subject"] == item and e["kind"] in ("item.planned", "job.failed"), SECONDS)
        self.assertEqual(end["kind"], "item.planned", end)
        tail.kill()
        out = self.path(name.replace("/", "-") + ".out.mp4")
        self.ctl("seller", "play", item, "--never-direct", "--max-height", "240", "--out", out, timeout=SECONDS)
        self.ctl_raw("seller", "job", "cancel", item)  # what is left may be none
        return path, out

    def check(self, name, path, out):
        kinds, frames, seconds = self.source(path)
        got = ffprobe(out, "-show_streams", "-show_format", "-count_frames")
        self.assertEqual({s["codec_type"] for s in got["streams"]}, kinds)
        self.assertAlmostEqual(float(got["format"]["duration"]), seconds, delta=0.25)
        for s in got["streams"]:
            if s["codec_type"] != "video":
                continue
            self.assertEqual(int(s["nb_read_frames"]), frames + GAPS.get(name, 0))
            self.assertEqual(s["width"] % 2 + s["height"] % 2, 0)
            if "rot90" in name:
                self.assertLess(s["width"], s["height"], "stands upright")
            if "sar_2to1" in name:
                self.assertGreater(s["width"] / s["height"], 3, "square pixels")

    def test_every_file_plays_to_its_end(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            runs = {name: pool.submit(self.play, name) for name in names()}
            for name, run in runs.items():
                with self.subTest(name):
                    self.check(name, *run.result())


if __name__ == "__main__":
    main()
