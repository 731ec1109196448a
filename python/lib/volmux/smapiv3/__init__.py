"""A SMAPIv3 plugin: volumes of any pool as virtual disks of XenServer and XCP-ng.

`python3 -m volmux.smapiv3 install` puts the executables where xapi-storage-script looks for them. docs/xen.md is the
manual, docs/decisions/0024-smapiv3.md tells why it is as it is.
"""
