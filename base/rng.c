/* rng.c: Philox4x32-10. The counter holds (block, b, a low, a high); the key holds the seed with the stream mixed in.
 */
#include "base/rng.h"

#include <math.h>

static void philox(const uint32_t key_in[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t k0 = key_in[0], k1 = key_in[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

rng rng_at(uint64_t seed, uint32_t stream, uint64_t a, uint32_t b)
{
    rng r = {0};
    r.key[0] = (uint32_t)seed;
    r.key[1] = (uint32_t)(seed >> 32) ^ (stream * 0x85EBCA6Bu);
    r.counter[1] = b;
    r.counter[2] = (uint32_t)a;
    r.counter[3] = (uint32_t)(a >> 32);
    return r;
}

uint32_t rng_u32(rng *r)
{
    if (!r->left) {
        philox(r->key, r->counter, r->out);
        r->counter[0]++;
        r->left = 4;
    }
    return r->out[4 - r->left--];
}

uint32_t rng_below(rng *r, uint32_t n)
{
    uint32_t reject = (uint32_t)(-n) % n; /* 2^32 mod n: below it the classes are not equally full */
    uint32_t x;
    do x = rng_u32(r);
    while (x < reject);
    return x % n;
}

float rng_uniform(rng *r)
{
    return (float)(rng_u32(r) >> 8) * 0x1p-24f;
}

float rng_between(rng *r, float low, float high)
{
    return low + (high - low) * rng_uniform(r);
}

float rng_normal(rng *r)
{
    if (r->has_normal) {
        r->has_normal = 0;
        return r->normal;
    }
    float u = 1.0f - rng_uniform(r), v = rng_uniform(r); /* Box-Muller, u in (0,1] */
    float radius = sqrtf(-2.0f * logf(u)), angle = 6.2831853f * v;
    r->normal = radius * sinf(angle);
    r->has_normal = 1;
    return radius * cosf(angle);
}

float rng_trunc_normal(rng *r, float std, float bound)
{
    for (;;) {
        float x = std * rng_normal(r);
        if (fabsf(x) <= bound) return x;
    }
}

/* The logarithm of a Gamma(a, 1): that of a small shape underflows. */
static double log_gamma_draw(rng *r, double a)
{
    if (a < 1) return log_gamma_draw(r, a + 1) + log(1.0 - rng_uniform(r)) / a;
    double d = a - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = rng_normal(r), v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log(1.0 - rng_uniform(r)) < 0.5 * x * x + d - d * v + d * log(v)) return log(d * v);
    }
}

float rng_beta(rng *r, float a)
{
    double x = log_gamma_draw(r, a), y = log_gamma_draw(r, a);
    return (float)(1 / (1 + exp(y - x)));
}

void rng_shuffle(rng *r, uint32_t *items, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = rng_below(r, (uint32_t)i);
        uint32_t t = items[i - 1];
        items[i - 1] = items[j];
        items[j] = t;
    }
}
