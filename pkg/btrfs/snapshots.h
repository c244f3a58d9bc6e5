#include <linux/btrfs.h>
#include <stdint.h>

/* A snapshot to be taken: of the subvolume args.fd, in the directory dir. */
struct snapshot {
	struct snapshot *next;
	uintptr_t call; /* is written to ended when error is set */
	int ended;      /* descriptor */
	int dir;
	int error; /* errno */
	struct btrfs_ioctl_vol_args_v2 args;
};

/* Has a thread take it, and returns at once: 0, or errno where there is no thread. */
int start_snapshot(struct snapshot *s);
