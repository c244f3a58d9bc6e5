#include <stddef.h>
#include <stdint.h>

struct snapshot {
	int dir;                 /* in which it is made */
	int error;               /* errno of its ioctl, 0 for none */
	const void *args;        /* struct btrfs_ioctl_vol_args_v2 */
};

void snapshots_together(int filesystem, struct snapshot *snapshots, size_t n,
			unsigned long start_sync, unsigned long snap_create, long most_lead_ms);
