package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pki issues the certificates of one cluster and keeps them in a directory.
type pki struct {
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64 // serial number
}

// identity is the subject of a certificate.
type identity struct {
	name   string   // of the files
	user   string   // the common name, which is Kubernetes' user
	groups []string // the organisations, which are Kubernetes' groups
	ips    []net.IP // the addresses of a server
	hosts  []string
}

func newPKI(dir string) (*pki, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &pki{dir: dir, key: key}
	p.ca = p.template("btrfs-csi-e2e")
	p.ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	p.ca.BasicConstraintsValid, p.ca.IsCA = true, true
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := p.sign("ca", p.ca, key); err != nil {
		return nil, err
	}
	err = p.serviceAccountKey()
	return p, err
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

// template returns a certificate that is valid since an hour ago, in case the clock is set back a little.
func (p *pki) template(name string) *x509.Certificate {
	p.next++
	return &x509.Certificate{
		SerialNumber: big.NewInt(p.next),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
}

// issue writes a certificate and its key to name.crt and name.key. With addresses it is for a server, too.
func (p *pki) issue(id identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c := p.template(id.user)
	c.Subject.Organization = id.groups
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(id.ips) > 0 {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	c.IPAddresses, c.DNSNames = id.ips, id.hosts
	return p.sign(id.name, c, key)
}

func (p *pki) sign(name string, c *x509.Certificate, key *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, c, p.ca, key.Public(), p.key)
	if err == nil {
		err = p.write(name+".crt", "CERTIFICATE", der)
	}
	if err == nil {
		err = p.writeKey(name+".key", key)
	}
	if err != nil {
		return fmt.Errorf("certificate %q: %w", name, err)
	}
	return nil
}

// serviceAccountKey makes the key that signs the tokens of service accounts.
func (p *pki) serviceAccountKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := p.write("service-accounts.pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return p.writeKey("service-accounts.key", key)
}

func (p *pki) writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return p.write(file, "EC PRIVATE KEY", der)
}

func (p *pki) write(file, kind string, der []byte) error {
	return os.WriteFile(p.file(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// kubeconfig writes a kubeconfig for an identity with a certificate. It contains the certificate and the key.
func (p *pki) kubeconfig(name, path string) error {
	const only = "btrfs-csi-e2e"
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{only: {Server: "https://" + labIP, CertificateAuthority: p.file("ca.crt")}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{only: {ClientCertificate: p.file(name + ".crt"), ClientKey: p.file(name + ".key")}},
		Contexts:       map[string]*clientcmdapi.Context{only: {Cluster: only, AuthInfo: only}},
		CurrentContext: only,
	}
	err := clientcmdapi.FlattenConfig(&config)
	if err == nil {
		err = clientcmd.WriteToFile(config, path)
	}
	if err != nil {
		return fmt.Errorf("kubeconfig %q: %w", name, err)
	}
	return nil
}
