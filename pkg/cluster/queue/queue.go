// Package queue has the keys that a controller reconciles.
package queue

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// ErrPutOff is returned by a reconcile function for a key that it has put back into the
// queue itself.
var ErrPutOff = errors.New("put off")

// workers is how many keys of a queue are reconciled at a time.
const workers = 4

// Queue has keys, each of them once.
type Queue[K comparable] struct {
	workqueue.TypedRateLimitingInterface[K]
}

// New returns a queue. A key that fails is reconciled again after a delay that grows from
// least to most.
func New[K comparable](least, most time.Duration) Queue[K] {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[K](least, most)
	return Queue[K]{workqueue.NewTypedRateLimitingQueue(limiter)}
}

// Run reconciles keys until ctx ends.
func (q Queue[K]) Run(ctx context.Context, reconcile func(context.Context, K) error) {
	context.AfterFunc(ctx, q.ShutDown)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() { q.work(ctx, reconcile) })
	}
	all.Wait()
}

func (q Queue[K]) work(ctx context.Context, reconcile func(context.Context, K) error) {
	for {
		key, shutdown := q.Get()
		if shutdown {
			return
		}
		switch err := reconcile(ctx, key); {
		case err == nil:
			q.Forget(key)
		case !errors.Is(err, ErrPutOff):
			klog.FromContext(ctx).V(2).Info("Not reconciled yet", "key", key, "reason", err)
			q.AddRateLimited(key)
		}
		q.Done(key)
	}
}
