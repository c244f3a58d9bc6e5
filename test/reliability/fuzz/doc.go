// Package fuzz runs the native fuzz targets of the driver one after the other.
package fuzz
