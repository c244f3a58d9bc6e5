package btrfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// abi maps C expressions on the kernel's headers to the values that this package assumes.
var abi = map[string]uint64{
	"sizeof(struct btrfs_ioctl_vol_args)":         uint64(unsafe.Sizeof(volArgs{})),
	"offsetof(struct btrfs_ioctl_vol_args, name)": uint64(unsafe.Offsetof(volArgs{}.name)),

	"sizeof(struct btrfs_ioctl_vol_args_v2)":          uint64(unsafe.Sizeof(volArgsV2{})),
	"offsetof(struct btrfs_ioctl_vol_args_v2, flags)": uint64(unsafe.Offsetof(volArgsV2{}.flags)),
	"offsetof(struct btrfs_ioctl_vol_args_v2, name)":  uint64(unsafe.Offsetof(volArgsV2{}.name)),

	"sizeof(struct btrfs_ioctl_timespec)":         uint64(unsafe.Sizeof(timespec{})),
	"offsetof(struct btrfs_ioctl_timespec, nsec)": uint64(unsafe.Offsetof(timespec{}.nsec)),

	"sizeof(struct btrfs_ioctl_get_subvol_info_args)":                  uint64(unsafe.Sizeof(subvolInfoArgs{})),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, name)":          uint64(unsafe.Offsetof(subvolInfoArgs{}.name)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, parent_id)":     uint64(unsafe.Offsetof(subvolInfoArgs{}.parentID)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, dirid)":         uint64(unsafe.Offsetof(subvolInfoArgs{}.dirID)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, generation)":    uint64(unsafe.Offsetof(subvolInfoArgs{}.generation)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, flags)":         uint64(unsafe.Offsetof(subvolInfoArgs{}.flags)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, uuid)":          uint64(unsafe.Offsetof(subvolInfoArgs{}.uuid)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, parent_uuid)":   uint64(unsafe.Offsetof(subvolInfoArgs{}.parentUUID)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, received_uuid)": uint64(unsafe.Offsetof(subvolInfoArgs{}.receivedUUID)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, otransid)":      uint64(unsafe.Offsetof(subvolInfoArgs{}.otransID)),
	"offsetof(struct btrfs_ioctl_get_subvol_info_args, otime)":         uint64(unsafe.Offsetof(subvolInfoArgs{}.otime)),

	"sizeof(struct btrfs_ioctl_get_subvol_rootref_args)":              uint64(unsafe.Sizeof(rootRefArgs{})),
	"offsetof(struct btrfs_ioctl_get_subvol_rootref_args, rootref)":   uint64(unsafe.Offsetof(rootRefArgs{}.refs)),
	"offsetof(struct btrfs_ioctl_get_subvol_rootref_args, num_items)": uint64(unsafe.Offsetof(rootRefArgs{}.numItems)),
	"BTRFS_MAX_ROOTREF_BUFFER_NUM":                                    maxRootRefs,

	"sizeof(struct btrfs_ioctl_ino_lookup_user_args)":         uint64(unsafe.Sizeof(inoLookupUserArgs{})),
	"offsetof(struct btrfs_ioctl_ino_lookup_user_args, name)": uint64(unsafe.Offsetof(inoLookupUserArgs{}.name)),
	"offsetof(struct btrfs_ioctl_ino_lookup_user_args, path)": uint64(unsafe.Offsetof(inoLookupUserArgs{}.path)),

	"sizeof(struct btrfs_ioctl_ino_lookup_args)":             uint64(unsafe.Sizeof(inoLookupArgs{})),
	"offsetof(struct btrfs_ioctl_ino_lookup_args, objectid)": uint64(unsafe.Offsetof(inoLookupArgs{}.objectID)),
	"offsetof(struct btrfs_ioctl_ino_lookup_args, name)":     uint64(unsafe.Offsetof(inoLookupArgs{}.name)),
	"BTRFS_INODE_REF_KEY":                                    inodeRefKey,
	"BTRFS_EMPTY_SUBVOL_DIR_OBJECTID":                        emptySubvolumeInode,

	"sizeof(struct btrfs_ioctl_search_key)":               uint64(unsafe.Sizeof(searchKey{})),
	"offsetof(struct btrfs_ioctl_search_key, max_offset)": uint64(unsafe.Offsetof(searchKey{}.maxOffset)),
	"offsetof(struct btrfs_ioctl_search_key, min_type)":   uint64(unsafe.Offsetof(searchKey{}.minType)),
	"offsetof(struct btrfs_ioctl_search_key, nr_items)":   uint64(unsafe.Offsetof(searchKey{}.nrItems)),
	"sizeof(struct btrfs_ioctl_search_args_v2)":           uint64(unsafe.Sizeof(searchArgs{})),
	"offsetof(struct btrfs_ioctl_search_args_v2, buf)":    uint64(unsafe.Sizeof(searchArgs{})),
	"sizeof(struct btrfs_ioctl_search_header)":            uint64(unsafe.Sizeof(searchHeader{})),
	"offsetof(struct btrfs_ioctl_search_header, type)":    uint64(unsafe.Offsetof(searchHeader{}.itemType)),
	"offsetof(struct btrfs_ioctl_search_header, len)":     uint64(unsafe.Offsetof(searchHeader{}.length)),

	"sizeof(struct btrfs_ioctl_space_args)":               uint64(unsafe.Sizeof(spaceArgsHead{})),
	"sizeof(struct btrfs_ioctl_space_info)":               uint64(unsafe.Sizeof(spaceInfo{})),
	"offsetof(struct btrfs_ioctl_space_info, used_bytes)": uint64(unsafe.Offsetof(spaceInfo{}.usedBytes)),

	"sizeof(struct btrfs_ioctl_dev_info_args)":                uint64(unsafe.Sizeof(devInfoArgs{})),
	"offsetof(struct btrfs_ioctl_dev_info_args, bytes_used)":  uint64(unsafe.Offsetof(devInfoArgs{}.bytesUsed)),
	"offsetof(struct btrfs_ioctl_dev_info_args, total_bytes)": uint64(unsafe.Offsetof(devInfoArgs{}.totalBytes)),
	"offsetof(struct btrfs_ioctl_dev_info_args, path)":        uint64(unsafe.Offsetof(devInfoArgs{}.path)),

	"sizeof(struct btrfs_ioctl_get_dev_stats)":           uint64(unsafe.Sizeof(devStatsArgs{})),
	"offsetof(struct btrfs_ioctl_get_dev_stats, values)": uint64(unsafe.Offsetof(devStatsArgs{}.values)),
	"BTRFS_DEV_STAT_VALUES_MAX":                          devStatsMax,

	"sizeof(struct btrfs_ioctl_fs_info_args)":               uint64(unsafe.Sizeof(fsInfoArgs{})),
	"offsetof(struct btrfs_ioctl_fs_info_args, fsid)":       uint64(unsafe.Offsetof(fsInfoArgs{}.fsid)),
	"offsetof(struct btrfs_ioctl_fs_info_args, nodesize)":   uint64(unsafe.Offsetof(fsInfoArgs{}.nodeSize)),
	"offsetof(struct btrfs_ioctl_fs_info_args, sectorsize)": uint64(unsafe.Offsetof(fsInfoArgs{}.sectorSize)),
	"offsetof(struct btrfs_ioctl_fs_info_args, flags)":      uint64(unsafe.Offsetof(fsInfoArgs{}.flags)),
	"offsetof(struct btrfs_ioctl_fs_info_args, generation)": uint64(unsafe.Offsetof(fsInfoArgs{}.generation)),

	"sizeof(struct btrfs_ioctl_feature_flags)":                   uint64(unsafe.Sizeof(features{})),
	"offsetof(struct btrfs_ioctl_feature_flags, incompat_flags)": uint64(unsafe.Offsetof(features{}.incompat)),
	"BTRFS_FEATURE_INCOMPAT_EXTENDED_IREF":                       extendedIref,

	"sizeof(struct btrfs_ioctl_quota_ctl_args)":                    uint64(unsafe.Sizeof(quotaCtlArgs{})),
	"sizeof(struct btrfs_ioctl_quota_rescan_args)":                 uint64(unsafe.Sizeof(quotaRescanArgs{})),
	"sizeof(struct btrfs_ioctl_qgroup_assign_args)":                uint64(unsafe.Sizeof(qgroupAssignArgs{})),
	"sizeof(struct btrfs_ioctl_qgroup_create_args)":                uint64(unsafe.Sizeof(qgroupCreateArgs{})),
	"sizeof(struct btrfs_ioctl_qgroup_limit_args)":                 uint64(unsafe.Sizeof(qgroupLimitArgs{})),
	"offsetof(struct btrfs_ioctl_qgroup_limit_args, lim.flags)":    uint64(unsafe.Offsetof(qgroupLimitArgs{}.flags)),
	"offsetof(struct btrfs_ioctl_qgroup_limit_args, lim.max_rfer)": uint64(unsafe.Offsetof(qgroupLimitArgs{}.maxRfer)),

	"BTRFS_IOC_GET_FEATURES":        uint64(iocGetFeatures),
	"BTRFS_IOC_SET_FEATURES":        uint64(iocSetFeatures),
	"BTRFS_IOC_SYNC":                uint64(iocSync),
	"BTRFS_IOC_RESIZE":              uint64(iocResize),
	"BTRFS_IOC_TREE_SEARCH_V2":      uint64(iocTreeSearchV2),
	"BTRFS_IOC_INO_LOOKUP":          uint64(iocInoLookup),
	"BTRFS_IOC_SPACE_INFO":          uint64(iocSpaceInfo),
	"BTRFS_IOC_START_SYNC":          uint64(iocStartSync),
	"BTRFS_IOC_SUBVOL_GETFLAGS":     uint64(iocSubvolGetFlags),
	"BTRFS_IOC_SUBVOL_SETFLAGS":     uint64(iocSubvolSetFlags),
	"BTRFS_IOC_DEV_INFO":            uint64(iocDevInfo),
	"BTRFS_IOC_FS_INFO":             uint64(iocFsInfo),
	"BTRFS_IOC_QUOTA_CTL":           uint64(iocQuotaCtl),
	"BTRFS_IOC_QGROUP_ASSIGN":       uint64(iocQgroupAssign),
	"BTRFS_IOC_QGROUP_CREATE":       uint64(iocQgroupCreate),
	"BTRFS_IOC_QGROUP_LIMIT":        uint64(iocQgroupLimit),
	"BTRFS_IOC_QUOTA_RESCAN":        uint64(iocQuotaRescan),
	"BTRFS_IOC_QUOTA_RESCAN_STATUS": uint64(iocQuotaRescanStat),
	"BTRFS_IOC_QUOTA_RESCAN_WAIT":   uint64(iocQuotaRescanWait),
	"BTRFS_IOC_GET_DEV_STATS":       uint64(iocGetDevStats),
	"BTRFS_IOC_GET_SUBVOL_INFO":     uint64(iocGetSubvolInfo),
	"BTRFS_IOC_GET_SUBVOL_ROOTREF":  uint64(iocGetSubvolRefs),
	"BTRFS_IOC_INO_LOOKUP_USER":     uint64(iocInoLookupUser),
	"BTRFS_IOC_SNAP_CREATE_V2":      uint64(iocSnapCreateV2),
	"BTRFS_IOC_SNAP_DESTROY_V2":     uint64(iocSnapDestroyV2),
	"FS_IOC_GETFLAGS":               unix.FS_IOC_GETFLAGS,
	"FS_IOC_SETFLAGS":               unix.FS_IOC_SETFLAGS,

	"BTRFS_ROOT_TREE_OBJECTID":                               rootTree,
	"BTRFS_FS_TREE_OBJECTID":                                 topLevelSubvol,
	"BTRFS_QUOTA_TREE_OBJECTID":                              quotaTree,
	"BTRFS_FIRST_FREE_OBJECTID":                              firstFree,
	"BTRFS_LAST_FREE_OBJECTID":                               lastFree,
	"BTRFS_INODE_ITEM_KEY":                                   inodeItemKey,
	"BTRFS_ROOT_BACKREF_KEY":                                 rootBackrefKey,
	"BTRFS_QGROUP_STATUS_KEY":                                qgroupStatusKey,
	"BTRFS_QGROUP_INFO_KEY":                                  qgroupInfoKey,
	"BTRFS_QGROUP_LIMIT_KEY":                                 qgroupLimitKey,
	"BTRFS_QGROUP_RELATION_KEY":                              qgroupRelation,
	"BTRFS_ROOT_SUBVOL_RDONLY":                               rootSubvolRDOnly,
	"BTRFS_SUBVOL_RDONLY":                                    subvolRDOnly,
	"BTRFS_FS_INFO_FLAG_GENERATION":                          fsInfoGeneration,
	"BTRFS_BLOCK_GROUP_DATA":                                 blockGroupData,
	"BTRFS_BLOCK_GROUP_SYSTEM":                               blockGroupSystem,
	"BTRFS_BLOCK_GROUP_METADATA":                             blockGroupMetadata,
	"BTRFS_SPACE_INFO_GLOBAL_RSV":                            spaceGlobalReserve,
	"BTRFS_QUOTA_CTL_ENABLE":                                 quotaCtlEnable,
	"BTRFS_QUOTA_CTL_DISABLE":                                quotaCtlDisable,
	"BTRFS_QGROUP_STATUS_FLAG_ON":                            qgroupStatusOn,
	"BTRFS_QGROUP_STATUS_FLAG_RESCAN":                        qgroupStatusRescan,
	"BTRFS_QGROUP_STATUS_FLAG_INCONSISTENT":                  qgroupStatusInconsistent,
	"BTRFS_QGROUP_LIMIT_MAX_RFER":                            qgroupLimitMaxRfer,
	"offsetof(struct btrfs_qgroup_status_item, flags)":       16,
	"offsetof(struct btrfs_qgroup_info_item, rfer)":          8,
	"offsetof(struct btrfs_qgroup_info_item, excl)":          24,
	"BTRFS_QGROUP_LIMIT_RSV_EXCL":                            qgroupLimitRsvExcl,
	"offsetof(struct btrfs_qgroup_limit_item, max_rfer)":     8,
	"offsetof(struct btrfs_qgroup_limit_item, rsv_excl)":     32,
	"offsetof(struct btrfs_inode_item, generation)":          0,
	"sizeof(struct btrfs_inode_item) < 512 ? 1 : 0":          1,
	"sizeof(struct btrfs_ioctl_search_header) == 32 ? 1 : 0": 1,
	"FS_IMMUTABLE_FL":                                        fsImmutable,
	"FS_APPEND_FL":                                           fsAppend,
	"FS_NOCOW_FL":                                            fsNoCow,
}

func TestABIMatchesKernelHeaders(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skipf("%v: a C compiler reads the headers", err)
	}
	var source bytes.Buffer
	source.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <linux/fs.h>\n" +
		"#include <linux/btrfs.h>\n#include <linux/btrfs_tree.h>\nint main(void) {\n")
	for expression := range abi {
		fmt.Fprintf(&source, "printf(\"%%llu\\t%%s\\n\", (unsigned long long)(%s), %q);\n", expression, expression)
	}
	source.WriteString("return 0;\n}\n")
	dir := t.TempDir()
	file, program := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(file, source.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-o", program, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(abi) {
		t.Fatalf("the program printed %d lines, wanted %d", len(lines), len(abi))
	}
	for _, line := range lines {
		value, expression, _ := strings.Cut(line, "\t")
		if want := fmt.Sprint(abi[expression]); value != want {
			t.Errorf("%s is %s in the headers, %s here", expression, value, want)
		}
	}
}
