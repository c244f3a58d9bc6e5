// Package chart tests the chart. Every metric and label that its alerts and its dashboard name is
// one that Prometheus gets from a driver that runs. The program in objects holds what the chart
// renders to the types of Kubernetes.
package chart
