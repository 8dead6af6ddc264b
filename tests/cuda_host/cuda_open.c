/* cuda_open.c: opens GPU 0 as the program does, and says in a line what came of it. Exit: 0, or 69: no GPU to use. */
#include <stdio.h>

#include "model/device_cuda.h"

enum { EXIT_UNAVAILABLE = 69 };

int main(void)
{
    device d;
    err e = {0};
    if (device_open_cuda(&d, 0, COMPUTE_AUTO, &e)) {
        printf("%s\n", e.msg);
        return EXIT_UNAVAILABLE;
    }
    device_close(&d);
    printf("a GPU was opened\n");
    return 0;
}
