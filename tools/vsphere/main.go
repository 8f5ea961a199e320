// A vCenter for tests: govmomi's simulator, with what it lacks and we rely on.
//
// Machines with a bootable disk run as real QEMU guests on the bytes behind their disks; files are locked while a machine runs;
// what a real vCenter refuses (an unknown network, a second machine of one name in a folder, a missing file) is refused; destroying a
// machine deletes the disks that are still attached to it, as the real one does.
//
// It prints one line of JSON {url, thumbprint, datastore} and runs until its standard input ends, so that it cannot outlive the
// test that started it. Everything it writes is below TMPDIR.
//
//	vsphere-sim -qemu PROGRAM -isolated NETWORK
//	vsphere-sim types FILE FOLDER    writes the TypeScript types of the methods and fields that FILE lists (types.go)
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "types" {
		printTypes(os.Args[2], os.Args[3])
		return
	}
	qemu := flag.String("qemu", "qemu-system-x86_64", "program that runs the guests")
	isolated := flag.String("isolated", "DC0_DVPG0", "network from which a guest reaches nothing")
	instance := flag.String("instance", "9dad7882-0f27-585a-8958-0e5ba60e8c6e", "instance id of this vCenter")
	machines := flag.Int("machines", 2, "machines that are there from the beginning, of each of two kinds")
	flag.Parse()

	model := simulator.VPX()
	model.Machine = *machines
	defer model.Remove()
	model.ServiceContent.About.InstanceUuid = *instance
	must(model.Create())
	world := newWorld(model, *qemu, *isolated)

	certificate, thumbprint := selfSigned()
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword("leeward", "correct horse")}
	model.Service.ServeMux = http.NewServeMux()
	world.serveControl(model.Service.ServeMux)
	server := model.Service.NewServer()
	defer server.Close()
	defer world.stopGuests()

	address := *server.URL
	address.User = nil
	store := world.registry.Any("Datastore").(*simulator.Datastore)
	must(json.NewEncoder(os.Stdout).Encode(map[string]string{
		"url": address.String(), "thumbprint": thumbprint, "datastore": store.Name, "folder": store.Summary.Url,
	}))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// A certificate of its own at every start: what pins it must have been told.
func selfSigned() (tls.Certificate, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "vsphere-sim"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(err)
	sum := sha256.Sum256(raw)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, hex.EncodeToString(sum[:])
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
