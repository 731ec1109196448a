/* The life of a volume: create, write, snapshot, clone, diff, revert, resize, delete.
 *
 *     cc lifecycle.c -o lifecycle $(pkg-config --cflags --libs volmux)
 *     ./lifecycle                        # a pool in memory, gone afterwards
 *     ./lifecycle dir:///srv/volumes     # any other pool
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <volmux.h>

/* Pools answer in units of at most this size, so what is written is a multiple of it. */
#define BLOCK (64 * 1024)
#define MIB (1024 * 1024)

static vmx_error *err;

/* Ends the program if a call failed, and says why. */
static void must(vmx_status status) {
    if (status == VMX_OK) {
        return;
    }
    fprintf(stderr, "%s\n", vmx_error_message(err));
    for (size_t i = 0; i < vmx_error_cause_count(err); i++) {
        fprintf(stderr, "  because %s\n", vmx_error_cause(err, i));
    }
    exit(1);
}

/* Ends the program unless a call failed as it had to. */
static void must_fail(vmx_status status, vmx_status expected) {
    if (status != expected) {
        fprintf(stderr, "%s, not %s\n", vmx_status_name(status), vmx_status_name(expected));
        exit(1);
    }
    vmx_error_free(err);
    err = NULL;
}

static void write_block(const vmx_pool *pool, const char *name, uint64_t offset, char byte) {
    static char block[BLOCK];
    vmx_open_options options;
    memset(&options, 0, sizeof options);
    options.access = VMX_READ_WRITE;
    vmx_device *device = NULL;
    must(vmx_open_volume(pool, name, &options, sizeof options, &device, &err));
    memset(block, byte, sizeof block);
    must(vmx_write(device, offset, block, sizeof block, &err));
    must(vmx_flush(device, &err));
    vmx_device_free(device);
}

static void must_hold(const vmx_pool *pool, const char *name, uint64_t offset, char byte) {
    static char block[BLOCK];
    vmx_device *device = NULL;
    must(vmx_open_volume(pool, name, NULL, 0, &device, &err));
    must(vmx_read(device, offset, block, sizeof block, &err));
    vmx_device_free(device);
    for (size_t i = 0; i < sizeof block; i++) {
        if (block[i] != byte) {
            fprintf(stderr, "%s holds something else\n", name);
            exit(1);
        }
    }
}

static void show_extents(const vmx_pool *pool, const char *name, const char *since) {
    vmx_extent_query query;
    memset(&query, 0, sizeof query);
    query.changed_since = since;
    vmx_extents *extents = NULL;
    must(vmx_list_extents(pool, name, &query, sizeof query, &extents, &err));
    printf("%s %s:", since ? "changed " : "extents ", name);
    uint64_t offset = 0, length = 0;
    for (;;) {
        must(vmx_next_extent(extents, &offset, &length, &err));
        if (length == 0) {
            break;
        }
        printf(" %" PRIu64 "+%" PRIu64, offset, length);
    }
    printf("\n");
    vmx_extents_free(extents);
}

static void show_volumes(const vmx_pool *pool) {
    vmx_volumes *volumes = NULL;
    must(vmx_list_volumes(pool, &volumes, &err));
    for (;;) {
        vmx_volume *volume = NULL;
        must(vmx_next_volume(volumes, &volume, &err));
        if (volume == NULL) {
            break;
        }
        const char *parent = vmx_volume_parent_name(volume);
        printf("volume   %s, %" PRIu64 " bytes%s%s\n", vmx_volume_name(volume),
               vmx_volume_virtual_size(volume), parent ? ", came from " : "",
               parent ? parent : "");
        vmx_volume_free(volume);
    }
    vmx_volumes_free(volumes);
}

static void live(const vmx_pool *pool) {
    vmx_create_options create;
    memset(&create, 0, sizeof create);
    create.size = 64 * MIB;
    must(vmx_create_volume(pool, "lifecycle-web", &create, sizeof create, NULL, &err));
    /* The same call again is no error: a caller that lost the answer may just repeat. */
    must(vmx_create_volume(pool, "lifecycle-web", &create, sizeof create, NULL, &err));
    must_hold(pool, "lifecycle-web", 0, 0);
    write_block(pool, "lifecycle-web", 0, 'A');
    show_extents(pool, "lifecycle-web", NULL);

    must(vmx_snapshot_volume(pool, "lifecycle-web", "lifecycle-monday", NULL, NULL, &err));
    must(vmx_clone_volume(pool, "lifecycle-monday", "lifecycle-test", NULL, NULL, &err));
    write_block(pool, "lifecycle-web", 0, 'B');
    write_block(pool, "lifecycle-test", 32 * MIB, 'C');
    show_extents(pool, "lifecycle-web", "lifecycle-monday");
    must_hold(pool, "lifecycle-monday", 0, 'A');
    must_hold(pool, "lifecycle-test", 0, 'A');
    show_volumes(pool);

    must(vmx_revert_volume(pool, "lifecycle-web", "lifecycle-monday", NULL, NULL, &err));
    must_hold(pool, "lifecycle-web", 0, 'A');

    vmx_resize_options resize;
    memset(&resize, 0, sizeof resize);
    resize.size = 128 * MIB;
    must(vmx_resize_volume(pool, "lifecycle-test", &resize, sizeof resize, NULL, &err));
    must_hold(pool, "lifecycle-test", 100 * MIB, 0);
    resize.size = 64 * MIB;
    must_fail(vmx_resize_volume(pool, "lifecycle-test", &resize, sizeof resize, NULL, &err),
              VMX_INVALID_INPUT);

    /* The parents first: what came from them does not mind. */
    must(vmx_delete_volume(pool, "lifecycle-web", &err));
    must(vmx_delete_volume(pool, "lifecycle-monday", &err));
    must_hold(pool, "lifecycle-test", 32 * MIB, 'C');
    must(vmx_delete_volume(pool, "lifecycle-test", &err));

    vmx_report *report = NULL;
    must(vmx_audit_pool(pool, NULL, 0, &report, &err));
    if (!vmx_report_is_clean(report)) {
        fprintf(stderr, "something is left over\n");
        exit(1);
    }
    vmx_report_free(report);
}

int main(int argc, char **argv) {
    if (vmx_abi_version() != VMX_ABI_VERSION) {
        fprintf(stderr, "this was built for another version of the library\n");
        return 1;
    }
    vmx_pool *pool = NULL;
    must(vmx_open_pool(argc > 1 ? argv[1] : "memory:", &pool, &err));
    printf("volmux %s on %s\n", vmx_version(), vmx_pool_url(pool));
    live(pool);
    vmx_pool_free(pool);
    printf("lifecycle: all as it should be\n");
    return 0;
}
