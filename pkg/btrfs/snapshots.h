#include <linux/btrfs.h>
#include <stdint.h>

/* A request to take a snapshot of the subvolume args.fd in the directory dir. */
struct snapshot {
	struct snapshot *next;
	uintptr_t call; /* handle that the thread writes to ended after it has set error */
	int ended;      /* write end of the pipe */
	int dir;
	int error; /* errno */
	struct btrfs_ioctl_vol_args_v2 args;
};

/* Queues s for a thread and returns 0, or errno if there is no thread. Does not wait. */
int start_snapshot(struct snapshot *s);
