#include <linux/btrfs.h>

/* A snapshot to be taken: of the subvolume args.fd, in the directory dir. */
struct snapshot {
	int dir;
	int error; /* errno, once its number has been written to ended */
	int number;
	int ended; /* descriptor */
	struct btrfs_ioctl_vol_args_v2 args;
};

/* Starts to take them, each in a thread of its own, and returns. */
void take_snapshots(struct snapshot *snapshots, int count);
