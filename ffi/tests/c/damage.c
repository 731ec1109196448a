/* What is told of damaged volumes, and that the rest of the pool goes on: `damage DIRECTORY`, for a
 * directory pool. */

#include "check.h"

static void overwrite(const char *directory, const char *file, const char *content) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    FILE *opened = fopen(path, "w");
    CHECK(opened != NULL && fputs(content, opened) >= 0 && fclose(opened) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    char url[4096];
    snprintf(url, sizeof url, "dir://%s", argv[1]);
    vmx_pool *pool = NULL;
    OK(vmx_open_pool(url, &pool, &err));
    const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) {
        create(pool, names[i], MIB);
    }
    overwrite(argv[1], "volumes/b.json", "{\"version\": 1, \"id\": ");

    /* A listing tells of it and goes on. */
    vmx_volumes *volumes = NULL;
    OK(vmx_list_volumes(pool, &volumes, &err));
    int found = 0, damaged = 0;
    for (;;) {
        vmx_volume *volume = NULL;
        vmx_status status = vmx_next_volume(volumes, &volume, &err);
        if (status != VMX_OK) {
            CHECK(volume == NULL);
            FAILS(VMX_CORRUPT, status);
            damaged++;
            continue;
        }
        if (volume == NULL) {
            break;
        }
        CHECK(strcmp(vmx_volume_name(volume), "b") != 0);
        vmx_volume_free(volume);
        found++;
    }
    vmx_volumes_free(volumes);
    CHECK(found == 2 && damaged == 1);

    vmx_volume *volume = NULL;
    FAILS(VMX_CORRUPT, vmx_get_volume(pool, "b", &volume, &err));
    vmx_device *device = NULL;
    FAILS(VMX_CORRUPT, vmx_open_volume(pool, "b", NULL, 0, &device, &err));
    CHECK(volume == NULL && device == NULL);

    /* Repair leaves it to a person. */
    vmx_audit_options options;
    memset(&options, 0, sizeof options);
    options.repair = 1;
    vmx_report *report = NULL;
    OK(vmx_audit_pool(pool, &options, sizeof options, &report, &err));
    CHECK(!vmx_report_is_clean(report));
    damaged = 0;
    for (size_t i = 0; i < vmx_report_finding_count(report); i++) {
        if (vmx_report_finding_kind(report, i) == VMX_FINDING_DAMAGED) {
            CHECK(strstr(vmx_report_finding_object(report, i), "b") != NULL);
            CHECK(!vmx_report_finding_is_repaired(report, i));
            damaged++;
        }
    }
    CHECK(damaged == 1);
    vmx_report_free(report);
    put(pool, "c", 0, 'c', 4096);
    CHECK(holds(pool, "c", 0, 'c', 4096));
    vmx_pool_free(pool);
    wait_for_threads();
    puts("damage: ok");
    return 0;
}
