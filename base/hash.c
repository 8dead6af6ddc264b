/* hash.c: OpenSSL's EVP behind hash.h. An allocation failure inside EVP shows as a NULL hash; every call accepts that
 * and the digest is then all zeros, which no stored digest equals. */
#include "base/hash.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/random.h>

#include "base/file.h"

static void to_hex(const unsigned char *bytes, size_t n, char *out)
{
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digit[bytes[i] >> 4];
        out[2 * i + 1] = digit[bytes[i] & 15];
    }
    out[2 * n] = 0;
}

/* The opaque hash is EVP's context itself. */
static EVP_MD_CTX *evp(hash *h)
{
    return (EVP_MD_CTX *)h;
}

hash *hash_new(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    if (c && !EVP_DigestInit_ex(c, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(c);
        c = NULL;
    }
    return (hash *)c;
}

void hash_add(hash *h, const void *data, size_t bytes)
{
    if (h && bytes) EVP_DigestUpdate(evp(h), data, bytes);
}

void hash_str(hash *h, const char *s)
{
    hash_add(h, s, strlen(s) + 1);
}

void hash_hex(hash *h, char out[HASH_HEX])
{
    unsigned char digest[HASH_BYTES] = {0};
    if (h) EVP_DigestFinal_ex(evp(h), digest, NULL);
    EVP_MD_CTX_free(evp(h));
    to_hex(digest, sizeof digest, out);
}

void hash_buffer(const void *data, size_t bytes, char out[HASH_HEX])
{
    hash *h = hash_new();
    hash_add(h, data, bytes);
    hash_hex(h, out);
}

err_code hash_file(const char *path, char out[HASH_HEX], err *e)
{
    enum { PIECE = 1 << 22 };
    file_map m;
    TRY(file_map_open(&m, path, e));
    hash *h = hash_new();
    for (size_t at = 0; at < m.bytes; at += PIECE) {
        size_t n = m.bytes - at < PIECE ? m.bytes - at : PIECE;
        hash_add(h, m.data + at, n);
        file_map_forget(&m, at, n);
    }
    hash_hex(h, out);
    file_map_close(&m);
    return ERR_OK;
}

void hash_pseudonym(const unsigned char *key, size_t key_bytes, const char *domain, const char *value,
                    char out[KEY_HEX])
{
    unsigned char digest[HASH_BYTES] = {0};
    size_t domain_bytes = strlen(domain) + 1, value_bytes = strlen(value);
    unsigned char text[1024];
    /* Identifiers are at most 64 characters (PS3.5 6.2); paths may be longer: they are hashed first. */
    char long_hash[HASH_HEX];
    if (domain_bytes + value_bytes > sizeof text) {
        hash_buffer(value, value_bytes, long_hash);
        value = long_hash;
        value_bytes = HASH_HEX - 1;
    }
    memcpy(text, domain, domain_bytes);
    memcpy(text + domain_bytes, value, value_bytes);
    HMAC(EVP_sha256(), key, (int)key_bytes, text, domain_bytes + value_bytes, digest, NULL);
    to_hex(digest, (KEY_HEX - 1) / 2, out);
}

err_code hash_random(void *out, size_t bytes, err *e)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = getrandom((char *)out + done, bytes - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) FAIL_ERRNO(e, "no random bytes from the system");
        done += (size_t)n;
    }
    return ERR_OK;
}
