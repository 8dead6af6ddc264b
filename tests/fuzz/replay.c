/* replay.c: runs a fuzz target over files and folders of files: replay PATH... Fails if there is none. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static int replayed;

static void replay(const char *path)
{
    file_map m;
    if (file_map_open(&m, path, NULL)) exit(1);
    printf("%s\n", path);
    fflush(stdout);
    LLVMFuzzerTestOneInput(m.data, m.bytes);
    file_map_close(&m);
    replayed++;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        struct stat st;
        if (stat(argv[i], &st)) return 1;
        if (!S_ISDIR(st.st_mode)) {
            replay(argv[i]);
            continue;
        }
        struct dirent **names;
        int n = scandir(argv[i], &names, NULL, alphasort);
        for (int k = 0; k < n; k++) {
            char path[FILE_PATH_MAX];
            if (names[k]->d_name[0] != '.' && !file_path(path, NULL, "%s/%s", argv[i], names[k]->d_name)) replay(path);
            free(names[k]);
        }
        if (n >= 0) free(names);
    }
    printf("%d files\n", replayed);
    return replayed ? 0 : 1;
}
