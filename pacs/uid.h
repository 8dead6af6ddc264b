/* uid.h: unique identifiers (PS3.5 9): checked, ordered, and derived from what they stand for.
 *
 *     char series[UID_MAX];
 *     TRY(uid_derive(series, NULL, e, "series", study_uid, model_hash, NULL));
 *
 * A derived UID is <root>.<128 bits in decimal>, the bits being those of SHA-256 over the fields, shaped as a version 8
 * UUID (RFC 9562 5.8), so that under the default root 2.25 it is what PS3.5 B.2 asks for. Same fields, same UID. */
#ifndef RADAPT_UID_H
#define RADAPT_UID_H
#include <stdbool.h>

#include "base/err.h"

enum { UID_MAX = 65 }; /* 64 characters and the NUL */

/* 1 to 64 characters, components of digits without leading zeros, separated by single dots. */
bool uid_valid(const char *uid);
/* Component by component, as numbers: 1.2.9 before 1.2.10. <0, 0, >0 as strcmp. Invalid UIDs compare somehow. */
int uid_compare(const char *a, const char *b);
/* root: an organisation's, at most 24 characters; NULL: 2.25. Fields are strings, closed by NULL; the first says what
 * the UID is for. ERR_USAGE: root unusable. */
err_code uid_derive(char out[UID_MAX], const char *root, err *e, ...) __attribute__((sentinel));

#endif
