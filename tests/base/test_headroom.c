/* Headroom: never more than the machine has, and the address space's limit is seen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sys/mman.h>
#include <sys/resource.h>

#include "base/headroom.h"

static void machine(void **state)
{
    (void)state;
    size_t total_kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) sscanf(line, "MemTotal: %zu", &total_kib);
    fclose(f);
    headroom h = headroom_get();
    print_message("%zu MiB of %s\n", h.bytes >> 20, h.of);
    assert_true(h.bytes > 0 && h.bytes <= total_kib << 10);
}

static void address_space(void **state)
{
    (void)state;
    struct rlimit old, less;
    enum { BLOCK = 64 << 20 };
    assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
    if (old.rlim_cur != RLIM_INFINITY) skip();
    assert_true(headroom_address_space() == SIZE_MAX);
    size_t used_kib = 0;
    char line[128];
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) sscanf(line, "VmSize: %zu", &used_kib);
    fclose(f);
    less = old;
    less.rlim_cur = (used_kib << 10) + 2 * BLOCK;
    assert_int_equal(setrlimit(RLIMIT_AS, &less), 0);
    size_t before = headroom_address_space();
    headroom h = headroom_get();
    void *p = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t after = headroom_address_space();
    assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
    assert_true(p != MAP_FAILED);
    munmap(p, BLOCK);
    assert_true(before <= 2 * BLOCK && before > BLOCK && after <= BLOCK && before - after >= BLOCK);
    assert_true(strstr(h.of, "ulimit -v") && h.bytes <= before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(machine), cmocka_unit_test(address_space)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
