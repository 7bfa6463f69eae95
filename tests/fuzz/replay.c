// Runs a fuzz target on files and folders of files, without a fuzzer: what was found once is tried
// in every build.
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "fuzz.h"

enum { INPUT_BYTES = 1 << 22, PATH_BYTES = 4096 };

static bool run_file(const char *path)
{
    FILE *f = fopen(path, "re");
    AUTO(mem_free_p) uint8_t *p = mem_alloc(INPUT_BYTES);
    if (!f || !p) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        if (f)
            fclose(f);
        return false;
    }
    size_t n = fread(p, 1, INPUT_BYTES, f);
    fclose(f);
    uint8_t *exact = mem_dup(p, n); // so that sanitizers see who reads beyond its end
    if (exact)
        LLVMFuzzerTestOneInput(exact, n);
    mem_free(exact);
    return exact != NULL;
}

// The number of inputs; negative when something could not be read.
static int run_path(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return run_file(path) ? 1 : -1;
    int n = 0;
    for (struct dirent *e; n >= 0 && (e = readdir(d)) != NULL;) {
        char name[PATH_BYTES];
        if (e->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        n = run_file(name) ? n + 1 : -1;
    }
    closedir(d);
    return n;
}

int main(int argc, char **argv)
{
    int n = 0;
    for (int i = 1; i < argc; i++) {
        int more = run_path(argv[i]);
        if (more <= 0) {
            fprintf(stderr, "%s: no inputs there\n", argv[i]);
            return 1;
        }
        n += more;
    }
    printf("%d inputs\n", n);
    return 0;
}
