// Character sets that demuxers convert names and titles from (ETSI EN 300 468 annex A; ID3; AVI).
// The C library loads a module for each when it is first wanted, which a confined process cannot.
#include <iconv.h>

#include "base/auto.h"
#include "codec/internal.h"

static const char *const charsets[] = {
    "ISO6937",     "ISO-8859-1",  "ISO-8859-2",  "ISO-8859-3", "ISO-8859-4",  "ISO-8859-5",
    "ISO-8859-6",  "ISO-8859-7",  "ISO-8859-8",  "ISO-8859-9", "ISO-8859-10", "ISO-8859-11",
    "ISO-8859-13", "ISO-8859-14", "ISO-8859-15", "UCS-2BE",    "UTF-16LE",    "UTF-16BE",
    "GB2312",      "BIG5",        "CP1252",      "MACINTOSH",  "KSC_5601",    "SHIFT_JIS",
};

void codec_charsets_load(void)
{
    // Kept open for the process' life: a module that nobody uses is unloaded again.
    static iconv_t kept[N_ELEMENTS(charsets)];
    if (kept[0])
        return;
    for (size_t i = 0; i < N_ELEMENTS(charsets); i++)
        kept[i] = iconv_open("UTF-8", charsets[i]); // one that is not installed stays unknown
}
