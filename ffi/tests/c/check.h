/* What the tests have in common. Each is a C11 and a C++17 program. */

#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <volmux.h>

#define KIB 1024ull
#define MIB (1024ull * 1024ull)

/* Fails the test, with the place and what the library says. */
#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

static vmx_error *err;

static inline void check_ok(vmx_status status, const char *call, const char *file, int line) {
    if (status == VMX_OK) {
        return;
    }
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, call, vmx_error_message(err));
    for (size_t i = 0; i < vmx_error_cause_count(err); i++) {
        fprintf(stderr, "  because %s\n", vmx_error_cause(err, i));
    }
    exit(1);
}

/* A call that must succeed; it ends with `&err)`. */
#define OK(call) check_ok(call, #call, __FILE__, __LINE__)

static inline void check_fails(vmx_status status, vmx_status expected, const char *call,
                               const char *file, int line) {
    if (status != expected || vmx_error_status(err) != expected) {
        fprintf(stderr, "%s:%d: %s: %s, not %s: %s\n", file, line, call, vmx_status_name(status),
                vmx_status_name(expected), err ? vmx_error_message(err) : "no error");
        exit(1);
    }
    CHECK(vmx_error_message(err) != NULL && vmx_error_op(err) != NULL);
    vmx_error_free(err);
    err = NULL;
}

/* A call that must fail with a status; it ends with `&err)`. */
#define FAILS(expected, call) check_fails(call, expected, #call, __FILE__, __LINE__)

static inline void create(const vmx_pool *pool, const char *name, uint64_t size) {
    vmx_create_options options;
    memset(&options, 0, sizeof options);
    options.size = size;
    OK(vmx_create_volume(pool, name, &options, sizeof options, NULL, &err));
}

static inline vmx_device *open_as(const vmx_pool *pool, const char *name, uint32_t access) {
    vmx_open_options options;
    memset(&options, 0, sizeof options);
    options.access = access;
    vmx_device *device = NULL;
    OK(vmx_open_volume(pool, name, &options, sizeof options, &device, &err));
    return device;
}

static inline void put(const vmx_pool *pool, const char *name, uint64_t offset, int byte,
                       size_t length) {
    char *data = (char *)malloc(length);
    memset(data, byte, length);
    vmx_device *device = open_as(pool, name, VMX_READ_WRITE);
    OK(vmx_write(device, offset, data, length, &err));
    OK(vmx_flush(device, &err));
    vmx_device_free(device);
    free(data);
}

/* Whether all bytes of a range have this value. */
static inline bool holds(const vmx_pool *pool, const char *name, uint64_t offset, int byte,
                         size_t length) {
    char *data = (char *)malloc(length);
    vmx_device *device = open_as(pool, name, VMX_READ_ONLY);
    memset(data, ~byte, length);
    OK(vmx_read(device, offset, data, length, &err));
    vmx_device_free(device);
    bool same = true;
    for (size_t i = 0; i < length; i++) {
        same = same && data[i] == (char)byte;
    }
    free(data);
    return same;
}

/* Waits until the library has no thread left, which it has once all handles are freed. */
static inline void wait_for_threads(void) {
    for (int i = 0; i < 1000; i++) {
        int threads = 0;
        DIR *tasks = opendir("/proc/self/task");
        CHECK(tasks != NULL);
        for (struct dirent *task = readdir(tasks); task; task = readdir(tasks)) {
            threads += task->d_name[0] != '.';
        }
        closedir(tasks);
        if (threads == 1) {
            return;
        }
        usleep(20 * 1000);
    }
    CHECK(!"threads of the library are still there");
}

#endif
