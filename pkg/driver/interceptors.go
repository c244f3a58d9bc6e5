package driver

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime/debug"
	"slices"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// coded is an error with a gRPC code. Unlike in an error of package status, the text does
// not contain the code.
type coded struct {
	code codes.Code
	text string
}

func (e *coded) Error() string              { return e.text }
func (e *coded) GRPCStatus() *status.Status { return status.New(e.code, e.text) }

func answer(code codes.Code, format string, args ...any) error {
	return &coded{code, fmt.Sprintf(format, args...)}
}

// precondition returns FAILED_PRECONDITION: a person must do something before the request.
func precondition(format string, args ...any) error {
	return answer(codes.FailedPrecondition, format, args...)
}

// plain returns the text of an error without its code.
func plain(err error) string { return status.Convert(err).Message() }

// creating lists the RPCs that another node could serve, too.
var creating = []string{"CreateVolume", "CreateSnapshot"}

// observe numbers and logs the request, logs its failure, and calls Options.Observe.
func (d *Driver) observe(logger klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		method := path.Base(info.FullMethod)
		logger := logger.WithValues("requestID", d.requests.Add(1), "method", method)
		logger.V(4).Info("RPC", "request", protosanitizer.StripSecrets(request))
		begin := time.Now()
		response, err := handler(klog.NewContext(ctx, logger), request)
		took, code := time.Since(begin), status.Code(err)
		if err != nil {
			logger.Error(errors.New(plain(err)), "RPC failed", "code", code, "duration", took)
		} else {
			logger.V(4).Info("RPC done", "response", protosanitizer.StripSecrets(response), "duration", took)
		}
		if d.options.Observe != nil {
			d.options.Observe(method, code, took)
		}
		return response, err
	}
}

// translate adds a code to every error.
func translate(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	response, err := handler(ctx, request)
	if err == nil {
		return response, nil
	}
	if slices.Contains(creating, path.Base(info.FullMethod)) {
		return nil, statusOfCreate(err)
	}
	return nil, statusOf(err)
}

// survive turns a panic into the failure of one request.
func survive(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	defer func() {
		if r := recover(); r != nil {
			klog.FromContext(ctx).Error(fmt.Errorf("%v", r), "Panic", "stack", string(debug.Stack()))
			response, err = nil, answer(codes.Internal, "panic: %v: please report it with the driver's log", r)
		}
	}()
	return handler(ctx, request)
}
