/* hash.h: SHA-256 and HMAC-SHA-256 (OpenSSL), as lower-case hex. */
#ifndef RADAPT_HASH_H
#define RADAPT_HASH_H
#include <stddef.h>

#include "err.h"

enum { HASH_BYTES = 32, HASH_HEX = 65, KEY_HEX = 33 }; /* KEY_HEX: a pseudonym, 128 bits in hex, with its NUL */

typedef struct hash hash;

/* Incremental: hash_new, hash_add..., hash_hex (which also frees). */
hash *hash_new(void);
void hash_add(hash *h, const void *data, size_t bytes);
void hash_str(hash *h, const char *s);      /* the characters and a NUL, so that fields do not run together */
void hash_hex(hash *h, char out[HASH_HEX]); /* frees h */
void hash_buffer(const void *data, size_t bytes, char out[HASH_HEX]);
err_code hash_file(const char *path, char out[HASH_HEX], err *e);
/* Pseudonym of value in a domain ("patient", "study", ...): the first 128 bits of HMAC-SHA-256(key, domain NUL value).
 */
void hash_pseudonym(const unsigned char *key, size_t key_bytes, const char *domain, const char *value,
                    char out[KEY_HEX]);
/* Random bytes from the operating system. */
err_code hash_random(void *out, size_t bytes, err *e);

#endif
