/* uid.c: see uid.h. */
#include "pacs/uid.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"

enum { ROOT_MAX = UID_MAX - 1 - 39 - 1 }; /* 128 bits are at most 39 digits, behind a dot */

bool uid_valid(const char *uid)
{
    size_t n = strlen(uid);
    if (n == 0 || n >= UID_MAX) return false;
    for (const char *p = uid;;) {
        size_t digits = strspn(p, "0123456789");
        if (digits == 0 || (digits > 1 && *p == '0')) return false;
        p += digits;
        if (!*p) return true;
        if (*p++ != '.') return false;
    }
}

int uid_compare(const char *a, const char *b)
{
    for (;;) {
        size_t n = strcspn(a, "."), m = strcspn(b, ".");
        if (n != m) return n < m ? -1 : 1; /* no leading zeros: the longer number is the larger */
        int c = memcmp(a, b, n);
        if (c) return c;
        a += n, b += m;
        if (!*a || !*b) return (*a != 0) - (*b != 0);
        a++, b++;
    }
}

static unsigned nibble(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

err_code uid_derive(char out[UID_MAX], const char *root, err *e, ...)
{
    if (!root) root = "2.25";
    if (!uid_valid(root) || strlen(root) > ROOT_MAX)
        FAIL(e, USAGE, "organisation root is not a UID of at most %d characters", ROOT_MAX);
    hash *h = hash_new();
    hash_str(h, "radapt-uid/1");
    va_list ap;
    va_start(ap, e);
    for (const char *field; (field = va_arg(ap, const char *));) hash_str(h, field);
    va_end(ap);
    char hex[HASH_HEX];
    hash_hex(h, hex);

    unsigned __int128 bits = 0;
    for (int i = 0; i < 32; i++) {
        unsigned digit = nibble(hex[i]);
        if (i == 12) digit = 8;               /* version 8: contents of our own choice */
        if (i == 16) digit = 8 | (digit & 3); /* variant 10 */
        bits = bits << 4 | digit;
    }
    char decimal[40];
    int at = (int)sizeof decimal - 1;
    decimal[at] = 0;
    do decimal[--at] = (char)('0' + (int)(bits % 10));
    while (bits /= 10);
    snprintf(out, UID_MAX, "%s.%s", root, decimal + at);
    return ERR_OK;
}
