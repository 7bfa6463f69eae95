// The assembler includes the files as they are; the include path is set by CMakeLists.txt.
#include "gateway/web.h"

#include "base/auto.h"

#define EMBED(symbol, file)                                                                        \
    __asm__(".pushsection .rodata\n"                                                               \
            ".hidden gateway_web_" #symbol "\n.global gateway_web_" #symbol "\n"                   \
            ".hidden gateway_web_" #symbol "_end\n.global gateway_web_" #symbol "_end\n"           \
            "gateway_web_" #symbol ":\n"                                                           \
            ".incbin \"" file "\"\n"                                                               \
            "gateway_web_" #symbol "_end:\n"                                                       \
            ".byte 0\n"                                                                            \
            ".popsection\n");                                                                      \
    extern const uint8_t gateway_web_##symbol[], gateway_web_##symbol##_end[]

EMBED(index_html, "index.html");
EMBED(item_html, "item.html");
EMBED(style_css, "style.css");
EMBED(api_js, "api.js");
EMBED(index_js, "index.js");
EMBED(item_js, "item.js");
EMBED(hls_js, "hls.min.js");

#define HTML "text/html; charset=utf-8"
#define SCRIPT "text/javascript; charset=utf-8"
const struct gateway_web_file gateway_web_files[] = {
    {"index.html", HTML, gateway_web_index_html, gateway_web_index_html_end},
    {"item.html", HTML, gateway_web_item_html, gateway_web_item_html_end},
    {"style.css", "text/css; charset=utf-8", gateway_web_style_css, gateway_web_style_css_end},
    {"api.js", SCRIPT, gateway_web_api_js, gateway_web_api_js_end},
    {"index.js", SCRIPT, gateway_web_index_js, gateway_web_index_js_end},
    {"item.js", SCRIPT, gateway_web_item_js, gateway_web_item_js_end},
    {"hls.min.js", SCRIPT, gateway_web_hls_js, gateway_web_hls_js_end},
};
const size_t gateway_n_web_files = N_ELEMENTS(gateway_web_files);
