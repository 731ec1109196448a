/* Wrong on purpose: AddressSanitizer has to notice. */

#include "check.h"

int main(void) {
    vmx_pool *pool = NULL;
    OK(vmx_open_pool("memory:", &pool, &err));
    create(pool, "v", MIB);
    vmx_volume *volume = NULL;
    OK(vmx_get_volume(pool, "v", &volume, &err));
    const char *name = vmx_volume_name(volume);
    vmx_volume_free(volume);
    printf("%c\n", name[0]);
    vmx_pool_free(pool);
    return 0;
}
