/* zip_make.h: archives as torch.save lays them out, and as it never would: entries of any claimed size, method and
 * checksum.
 *
 *     zip z = {0};
 *     zip_add(&z, "archive/data.pkl", bytes, n);
 *     zip_write(&z, path);                          // frees; z is empty again */
#ifndef RADAPT_TESTS_ZIP_MAKE_H
#define RADAPT_TESTS_ZIP_MAKE_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { ZIP_MOST = 1 << 16 };
typedef struct {
    unsigned char local[ZIP_MOST], central[ZIP_MOST];
    size_t local_bytes, central_bytes;
    unsigned entries;
    uint32_t wrong_crc, wrong_size; /* added to what is true, of the entries that follow */
    unsigned method;
} zip;

static inline void zip_put(unsigned char *to, size_t *at, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes && *at < ZIP_MOST; i++) to[(*at)++] = (unsigned char)(i < 8 ? value >> (8 * i) : 0);
}

/* The fields that the local header and the directory share (APPNOTE.TXT 4.3.7, 4.3.12). */
static inline void zip_describe(unsigned char *to, size_t *at, const zip *z, const void *data, size_t bytes,
                                size_t name)
{
    uint32_t crc = (uint32_t)crc32(0, data, (uInt)bytes) + z->wrong_crc;
    zip_put(to, at, 0, 2);
    zip_put(to, at, z->method, 2);
    zip_put(to, at, 0, 4);
    zip_put(to, at, crc, 4);
    zip_put(to, at, bytes + z->wrong_size, 4);
    zip_put(to, at, bytes + z->wrong_size, 4);
    zip_put(to, at, name, 2);
}

static inline void zip_add(zip *z, const char *name, const void *data, size_t bytes)
{
    size_t place = z->local_bytes, n = strlen(name);
    zip_put(z->local, &z->local_bytes, 0x04034b50, 4);
    zip_put(z->local, &z->local_bytes, 20, 2);
    zip_describe(z->local, &z->local_bytes, z, data, bytes, n);
    zip_put(z->local, &z->local_bytes, 0, 2);
    if (z->local_bytes + n + bytes <= ZIP_MOST) {
        memcpy(z->local + z->local_bytes, name, n);
        if (bytes) memcpy(z->local + z->local_bytes + n, data, bytes);
        z->local_bytes += n + bytes;
    }
    zip_put(z->central, &z->central_bytes, 0x02014b50, 4);
    zip_put(z->central, &z->central_bytes, 20 | 20 << 16, 4);
    zip_describe(z->central, &z->central_bytes, z, data, bytes, n);
    zip_put(z->central, &z->central_bytes, 0, 12);
    zip_put(z->central, &z->central_bytes, place, 4);
    for (size_t i = 0; i < n; i++) zip_put(z->central, &z->central_bytes, (unsigned char)name[i], 1);
    z->entries++;
}

static inline void zip_write(zip *z, const char *path)
{
    unsigned char end[32];
    size_t at = 0;
    zip_put(end, &at, 0x06054b50, 4);
    zip_put(end, &at, 0, 4);
    zip_put(end, &at, z->entries | z->entries << 16, 4);
    zip_put(end, &at, z->central_bytes, 4);
    zip_put(end, &at, z->local_bytes, 4);
    zip_put(end, &at, 0, 2);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(z->local, 1, z->local_bytes, f) != z->local_bytes ||
        fwrite(z->central, 1, z->central_bytes, f) != z->central_bytes || fwrite(end, 1, at, f) != at || fclose(f))
        abort();
    memset(z, 0, sizeof *z);
}

#endif
