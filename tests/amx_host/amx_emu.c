/* amx_emu.c: linked into a test, runs the code for AMX tiles and for bf16 vectors on a processor that has AVX-512
 * alone. What the processor does not know it refuses (SIGILL); the handler decodes it, does what Intel's SDM says
 * (volume 2: TDPBF16PS, TILELOADD, VCVTNEPS2BF16, ...) on the thread's saved registers, and goes on behind it. The
 * program asks oneDNN which instructions there are (op_cpu_matmul_has_amx): here this file answers. AMX_EMU=bf16:
 * vectors alone. An instruction that it does not know, or that the SDM forbids, ends the program with a line that says
 * so.
 *
 * Where the processor has them, nothing is refused and nothing is emulated. In the sanitized build, loads and stores of
 * tiles are checked like any other. */
#include <cpuid.h>
#include <dlfcn.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ISA_BF16 = 0xe7, ISA_AMX = 0x3e7 }; /* dnnl_cpu_isa_t */
enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };
enum { FEATURE_AVX = 2, FEATURE_ZMM_HIGH = 6, FEATURE_ZMM_16 = 7 }; /* state components (SDM volume 1, 13.1) */
enum { STATUS = 512, MAGIC1 = 0x46505853 };                         /* XSAVE header; in a signal's frame at 464 */

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 }; /* arch_prctl(2), of tiles */

int dnnl_get_effective_cpu_isa(void);

/* The thread's tiles. */
static __thread struct {
    struct {
        unsigned char palette, start, reserved[14];
        uint16_t column_bytes[16];
        unsigned char rows[16];
    } config;
    unsigned char at[TILES][ROWS][ROW_BYTES];
} tiles;

static unsigned zmm_high, zmm_16; /* where these components lie in a saved state */

int dnnl_get_effective_cpu_isa(void)
{
    const char *what = getenv("AMX_EMU");
    return what && strcmp(what, "bf16") == 0 ? ISA_BF16 : ISA_AMX;
}

/* One instruction, decoded. */
typedef struct {
    const unsigned char *from;
    size_t length;
    bool evex, w;
    unsigned map, prefix, vector, opcode; /* prefix: 0 none, 1 66, 2 F3, 3 F2; vector: 0 128, 1 256, 2 512 bits */
    unsigned reg, rm, other;              /* ModRM.reg, .rm as a register, vvvv */
    bool memory;
    uintptr_t address, index; /* base + displacement; index << scale: of tile loads the stride */
} instruction;

static void refuse(const instruction *i, const char *why)
{
    char line[200];
    int n = snprintf(line, sizeof line, "amx_emu: %s:", why);
    for (size_t k = 0; k < 12; k++) n += snprintf(line + n, sizeof line - (size_t)n, " %02x", i->from[k]);
    line[n++] = '\n';
    if (write(2, line, (size_t)n) < 0) _exit(70);
    _exit(70);
}

static uintptr_t general(const ucontext_t *u, unsigned r)
{
    static const int of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uintptr_t)u->uc_mcontext.gregs[of[r]];
}

static int32_t read32(const unsigned char *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* VEX with three bytes, or EVEX without mask, zeroing or broadcast; then ModRM, SIB and displacement. */
static instruction decode(const ucontext_t *u)
{
    const unsigned char *p = (const unsigned char *)u->uc_mcontext.gregs[REG_RIP];
    instruction i = {.from = p};
    unsigned not_r, not_x, not_b, high = 0;
    i.evex = p[0] == 0x62;
    if (!i.evex && p[0] != 0xc4) refuse(&i, "an instruction that is not emulated");
    not_r = p[1] >> 7 & 1, not_x = p[1] >> 6 & 1, not_b = p[1] >> 5 & 1;
    i.map = p[1] & (i.evex ? 7 : 31);
    i.w = p[2] >> 7;
    i.other = ~p[2] >> 3 & 15;
    i.prefix = p[2] & 3;
    if (i.evex) {
        if (p[3] & 0x97) refuse(&i, "a mask, zeroing or broadcast is not emulated");
        high = (unsigned)!(p[1] >> 4 & 1) << 4;
        i.other |= (unsigned)!(p[3] >> 3 & 1) << 4;
        i.vector = p[3] >> 5 & 3;
        p += 4;
    } else {
        i.vector = p[2] >> 2 & 1;
        p += 3;
    }
    i.opcode = *p++;
    unsigned modrm = *p++, mode = modrm >> 6, low = modrm & 7;
    i.reg = high | (unsigned)!not_r << 3 | (modrm >> 3 & 7);
    i.rm = (i.evex ? (unsigned)!not_x << 4 : 0) | (unsigned)!not_b << 3 | low;
    i.memory = mode != 3;
    if (i.memory) {
        bool sib = low == 4, base = true;
        unsigned b = (unsigned)!not_b << 3 | low;
        if (sib) {
            unsigned x = (unsigned)!not_x << 3 | (*p >> 3 & 7);
            if (x != 4) i.index = general(u, x) << (*p >> 6);
            b = (unsigned)!not_b << 3 | (*p & 7);
            base = mode != 0 || (*p & 7) != 5;
            p++;
        }
        bool relative = !sib && mode == 0 && low == 5;
        intptr_t displacement = 0;
        if (mode == 1) displacement = (intptr_t)(int8_t)*p++ * (i.evex ? 16 << i.vector : 1);
        if (mode == 2 || relative || !base) displacement = read32(p), p += 4;
        i.address = (uintptr_t)displacement + (relative ? (uintptr_t)p : base ? general(u, b) : 0);
    }
    i.length = (size_t)(p - i.from);
    return i;
}

/* --- vectors: registers as they lie in the saved state */

static unsigned char *state(ucontext_t *u)
{
    return (unsigned char *)u->uc_mcontext.fpregs;
}

static uint64_t *present(ucontext_t *u) /* XSTATE_BV: what of the state is not in its initial configuration */
{
    return (uint64_t *)(void *)(state(u) + STATUS);
}

/* The parts of register r: 16, 16 and 32 bytes, or 64 at once for the upper sixteen. */
static void read_zmm(ucontext_t *u, unsigned r, void *out)
{
    unsigned char *s = state(u), *to = out;
    memset(to, 0, 64);
    if (r >= 16) {
        if (*present(u) >> FEATURE_ZMM_16 & 1) memcpy(to, s + zmm_16 + 64 * (r - 16), 64);
        return;
    }
    if (*present(u) >> 1 & 1) memcpy(to, s + 160 + 16 * r, 16);
    if (*present(u) >> FEATURE_AVX & 1) memcpy(to + 16, s + 576 + 16 * r, 16);
    if (*present(u) >> FEATURE_ZMM_HIGH & 1) memcpy(to + 32, s + zmm_high + 32 * r, 32);
}

/* A component that was in its initial configuration is zeros: the other registers of it too. */
static unsigned char *component(ucontext_t *u, int feature, size_t at, size_t bytes)
{
    if (!(*present(u) >> feature & 1)) memset(state(u) + at, 0, bytes);
    *present(u) |= 1ull << feature;
    return state(u) + at;
}

static void write_zmm(ucontext_t *u, unsigned r, const void *value)
{
    const unsigned char *from = value;
    if (r >= 16) {
        memcpy(component(u, FEATURE_ZMM_16, zmm_16, 16 * 64) + 64 * (r - 16), from, 64);
        return;
    }
    memcpy(component(u, 1, 160, 256) + 16 * r, from, 16);
    memcpy(component(u, FEATURE_AVX, 576, 256) + 16 * r, from + 16, 16);
    memcpy(component(u, FEATURE_ZMM_HIGH, zmm_high, 16 * 32) + 32 * r, from + 32, 32);
}

/* To nearest even; subnormal numbers are 0, NaN becomes quiet (SDM, VCVTNEPS2BF16). */
static uint16_t to_bf16(uint32_t x)
{
    if ((x & 0x7f800000) == 0) return (uint16_t)(x >> 16 & 0x8000);
    if ((x & 0x7fffffff) > 0x7f800000) return (uint16_t)(x >> 16 | 0x40);
    return (uint16_t)((x + 0x7fff + (x >> 16 & 1)) >> 16);
}

static void convert(ucontext_t *u, const instruction *i)
{
    uint32_t source[2][16] = {0};
    uint16_t out[32] = {0};
    if (i->vector != 2 || i->w) refuse(i, "only vectors of 512 bits are emulated");
    bool two = i->prefix == 3;
    if (i->memory)
        memcpy(source[0], (const void *)(i->address + i->index), 64);
    else
        read_zmm(u, i->rm, source[0]);
    if (two) read_zmm(u, i->other, source[1]);
    for (int k = 0; k < 32; k++) out[k] = k < 16 || two ? to_bf16(source[k / 16][k % 16]) : 0;
    write_zmm(u, i->reg, out);
}

/* --- tiles */

static size_t rows_of(const instruction *i, unsigned t)
{
    if (tiles.config.palette != 1) refuse(i, "tiles without a configuration");
    if (t >= TILES || !tiles.config.rows[t] || !tiles.config.column_bytes[t])
        refuse(i, "a tile that is not configured");
    return tiles.config.rows[t];
}

static void configure(const instruction *i, const void *from)
{
    memcpy(&tiles.config, from, sizeof tiles.config);
    memset(tiles.at, 0, sizeof tiles.at);
    if (tiles.config.palette > 1) refuse(i, "a palette that does not exist");
    for (int t = 0; t < 16; t++) {
        unsigned rows = tiles.config.rows[t], bytes = tiles.config.column_bytes[t];
        bool used = rows || bytes;
        if (used && (t >= TILES || !rows || !bytes || rows > ROWS || bytes > ROW_BYTES))
            refuse(i, "a configuration that does not exist");
    }
    for (int k = 0; k < 14; k++)
        if (tiles.config.reserved[k]) refuse(i, "a configuration with reserved bytes");
}

static void load_or_store(const instruction *i, bool store)
{
    size_t rows = rows_of(i, i->reg), bytes = tiles.config.column_bytes[i->reg];
    for (size_t r = 0; r < rows; r++) {
        unsigned char *memory = (unsigned char *)(i->address + r * i->index), *tile = tiles.at[i->reg][r];
        memcpy(store ? memory : tile, store ? tile : memory, bytes);
        if (!store) memset(tile + bytes, 0, ROW_BYTES - bytes);
    }
    if (!store) memset(tiles.at[i->reg][rows], 0, (ROWS - rows) * ROW_BYTES);
}

/* Subnormal numbers are 0. */
static inline float flushed(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static inline float widened(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return flushed(v);
}

/* Sums of even and of odd products, one after the other; then both to what was there (SDM, TDPBF16PS). */
static void multiply(const instruction *i)
{
    unsigned d = i->reg, a = i->rm, b = i->other;
    size_t rows = rows_of(i, d), pairs = tiles.config.column_bytes[a] / 4, columns = tiles.config.column_bytes[d] / 4;
    if (rows_of(i, a) != rows || rows_of(i, b) != pairs || tiles.config.column_bytes[b] / 4u != columns || d == a ||
        d == b || a == b)
        refuse(i, "tiles that do not fit each other");
    float right[ROWS][2][ROWS];
    for (size_t k = 0; k < pairs; k++) {
        uint16_t row[2 * ROWS];
        memcpy(row, tiles.at[b][k], sizeof row);
        for (int n = 0; n < ROWS; n++) right[k][0][n] = widened(row[2 * n]), right[k][1][n] = widened(row[2 * n + 1]);
    }
    for (size_t m = 0; m < rows; m++) {
        float sum[2][ROWS] = {{0}}, now[ROWS];
        uint16_t left[2 * ROWS];
        memcpy(left, tiles.at[a][m], sizeof left);
        memcpy(now, tiles.at[d][m], sizeof now);
        for (size_t k = 0; k < pairs; k++)
            for (int s = 0; s < 2; s++) {
                float x = widened(left[2 * k + (size_t)s]);
                for (int n = 0; n < ROWS; n++) sum[s][n] = flushed(fmaf(x, right[k][s][n], sum[s][n]));
            }
        for (int n = 0; n < ROWS; n++) now[n] = flushed(flushed(now[n]) + flushed(sum[0][n] + sum[1][n]));
        memset(tiles.at[d][m], 0, ROW_BYTES);
        memcpy(tiles.at[d][m], now, 4 * columns);
    }
}

static void run(ucontext_t *u, const instruction *i)
{
    enum { NONE, P66, F3, F2 };
    if (i->map != 2) refuse(i, "an instruction that is not emulated");
    if (i->evex && i->opcode == 0x72 && (i->prefix == F3 || i->prefix == F2)) {
        convert(u, i);
        return;
    }
    if (i->evex || i->vector || i->w) refuse(i, "an instruction that is not emulated");
    unsigned what = i->opcode << 4 | i->prefix;
    if (what == (0x490 | NONE) && i->memory)
        configure(i, (const void *)(i->address + i->index));
    else if (what == (0x490 | NONE) && i->rm == 0 && i->reg == 0)
        memset(&tiles, 0, sizeof tiles);
    else if (what == (0x490 | P66) && i->memory)
        memcpy((void *)(i->address + i->index), &tiles.config, sizeof tiles.config);
    else if (what == (0x490 | F2) && !i->memory)
        memset(tiles.at[i->reg], 0, rows_of(i, i->reg) ? sizeof tiles.at[0] : 0);
    else if (i->opcode == 0x4b && i->memory && i->prefix != NONE)
        load_or_store(i, i->prefix == F3);
    else if (what == (0x5c0 | F3) && !i->memory)
        multiply(i);
    else
        refuse(i, "an instruction that is not emulated");
}

static void on_illegal(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)info;
    ucontext_t *u = context;
    instruction i = decode(u);
    uint32_t magic;
    memcpy(&magic, state(u) + 464, sizeof magic);
    if (magic != MAGIC1) refuse(&i, "no extended state in the signal's frame");
    run(u, &i);
    u->uc_mcontext.gregs[REG_RIP] += (greg_t)i.length;
}

typedef sighandler_t signal_fn(int sig, sighandler_t handler);
static signal_fn *real_signal;

__attribute__((constructor)) static void begin(void)
{
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl")) {
        puts("skipped: code for tiles uses AVX-512 besides, which this processor does not have");
        exit(77);
    }
    if (__get_cpuid_count(0xd, FEATURE_ZMM_HIGH, &a, &b, &c, &d)) zmm_high = b;
    if (__get_cpuid_count(0xd, FEATURE_ZMM_16, &a, &b, &c, &d)) zmm_16 = b;
    syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA); /* as oneDNN asks; refused where there are no tiles */
    *(void **)&real_signal = dlsym(RTLD_NEXT, "signal");
    struct sigaction s = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &s, NULL);
}

/* cmocka wants that signal for itself. */
sighandler_t signal(int sig, sighandler_t handler)
{
    return sig == SIGILL ? SIG_DFL : real_signal(sig, handler);
}
