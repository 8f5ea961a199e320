package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// guest is a QEMU that runs what is on the disks of a machine.
type guest struct {
	process *exec.Cmd
	folder  string
	port    int // On 127.0.0.1, to port 8080 of the guest.
	ready   atomic.Bool
	ended   chan struct{}
}

const readyWord = "LEDGER-READY"

// launch starts a guest if one of the machine's disks has a boot sector; it returns when QEMU answers.
func (w *world) launch(vm *simulator.VirtualMachine) error {
	disks := disksOf(vm.Config.Hardware.Device)
	if !w.bootable(disks) {
		return nil
	}
	folder, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	words := []string{"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "tcg", "-cpu", "max",
		"-smp", fmt.Sprint(vm.Config.Hardware.NumCPU), "-m", fmt.Sprintf("%dM", vm.Config.Hardware.MemoryMB), "-uuid", vm.Config.Uuid,
		"-chardev", "file,id=console,path=console", "-serial", "chardev:console",
		"-qmp", "unix:control.sock,server=on,wait=off", "-device", "virtio-rng-pci"}
	for at, disk := range disks {
		backing := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		words = append(words, "-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,discard=unmap,file=%s", at, flat(w.hostPath(backing.FileName))),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%.20s,bootindex=%d", at, strings.ReplaceAll(backing.Uuid, "-", ""), at))
	}
	for at, device := range vm.Config.Hardware.Device {
		if card, ok := device.(types.BaseVirtualEthernetCard); ok {
			restricted := "off"
			if w.networkOf(card) == w.isolated {
				restricted = "on"
			}
			words = append(words, "-netdev", fmt.Sprintf("user,id=net%d,restrict=%s,hostfwd=tcp:127.0.0.1:%d-:8080", at, restricted, port),
				"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=", at, card.GetVirtualEthernetCard().MacAddress))
			break
		}
	}
	it := &guest{process: exec.Command(w.qemu, words...), folder: folder, port: port, ended: make(chan struct{})}
	it.process.Dir = folder
	said, err := os.Create(filepath.Join(folder, "stderr"))
	if err != nil {
		return err
	}
	it.process.Stderr = said
	if err := it.process.Start(); err != nil {
		return err
	}
	w.mutex.Lock()
	w.consoles[vm.Config.InstanceUuid] = filepath.Join(folder, "console")
	w.guests[vm.Self] = it
	w.mutex.Unlock()
	go w.reportEnd(vm.Self, it)
	go w.reportReady(vm.Self, it)
	for range 500 {
		select {
		case <-it.ended:
			text, _ := os.ReadFile(filepath.Join(folder, "stderr"))
			return fmt.Errorf("QEMU ended: %s", strings.TrimSpace(string(text)))
		case <-time.After(20 * time.Millisecond):
			if it.command("query-status") {
				return nil
			}
		}
	}
	it.kill()
	return fmt.Errorf("QEMU does not answer")
}

func (w *world) reportEnd(reference types.ManagedObjectReference, it *guest) {
	_ = it.process.Wait()
	w.mutex.Lock()
	delete(w.guests, reference)
	w.mutex.Unlock()
	close(it.ended)
	w.change(reference,
		types.PropertyChange{Name: "runtime.powerState", Val: types.VirtualMachinePowerStatePoweredOff},
		types.PropertyChange{Name: "summary.runtime.powerState", Val: types.VirtualMachinePowerStatePoweredOff},
		types.PropertyChange{Name: "guest.toolsRunningStatus", Val: "guestToolsNotRunning"},
		types.PropertyChange{Name: "guest.ipAddress", Val: ""})
}

// reportReady: when the guest's service says that it serves, its tools would report an address.
func (w *world) reportReady(reference types.ManagedObjectReference, it *guest) {
	for {
		select {
		case <-it.ended:
			return
		case <-time.After(100 * time.Millisecond):
			text, _ := os.ReadFile(filepath.Join(it.folder, "console"))
			if !strings.Contains(string(text), readyWord) {
				continue
			}
			it.ready.Store(true)
			w.change(reference,
				types.PropertyChange{Name: "guest.toolsRunningStatus", Val: "guestToolsRunning"},
				types.PropertyChange{Name: "guest.toolsStatus", Val: types.VirtualMachineToolsStatusToolsOk},
				types.PropertyChange{Name: "guestHeartbeatStatus", Val: types.ManagedEntityStatusGreen},
				types.PropertyChange{Name: "guest.ipAddress", Val: "10.0.2.15"})
			return
		}
	}
}

// change a machine's properties from outside a call: with a context of our own, under the machine's lock.
func (w *world) change(reference types.ManagedObjectReference, changes ...types.PropertyChange) {
	ctx := &simulator.Context{
		Context: context.Background(),
		Session: &simulator.Session{Registry: simulator.NewRegistry(), Map: w.registry}, Map: w.registry,
	}
	if vm, ok := w.registry.Get(reference).(*simulator.VirtualMachine); ok {
		w.registry.WithLock(ctx, reference, func() { w.registry.Update(ctx, vm, changes) })
	}
}

func (w *world) guest(reference types.ManagedObjectReference) *guest {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.guests[reference]
}

func (w *world) stopGuests() {
	w.mutex.Lock()
	running := make([]*guest, 0, len(w.guests))
	for _, it := range w.guests {
		running = append(running, it)
	}
	w.mutex.Unlock()
	for _, it := range running {
		it.kill()
		<-it.ended
	}
}

func (w *world) bootable(disks []*types.VirtualDisk) bool {
	for _, disk := range disks {
		file, err := os.Open(flat(w.hostPath(fileOf(disk))))
		if err != nil {
			continue
		}
		mark := make([]byte, 2)
		_, err = file.ReadAt(mark, 510)
		_ = file.Close()
		if err == nil && mark[0] == 0x55 && mark[1] == 0xaa {
			return true
		}
	}
	return false
}

func (g *guest) pid() int { return g.process.Process.Pid }
func (g *guest) kill()    { _ = g.process.Process.Kill() }

// command over QMP; true when QEMU answered.
func (g *guest) command(name string) bool {
	connection, err := net.DialTimeout("unix", filepath.Join(g.folder, "control.sock"), time.Second)
	if err != nil {
		return false
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(5 * time.Second))
	lines := bufio.NewScanner(connection)
	if !lines.Scan() { // The greeting.
		return false
	}
	for _, one := range []string{"qmp_capabilities", name} {
		fmt.Fprintf(connection, "{\"execute\":%q}\n", one)
		for {
			if !lines.Scan() {
				return false
			}
			if strings.Contains(lines.Text(), `"return"`) || strings.Contains(lines.Text(), `"error"`) {
				break
			}
		}
	}
	return true
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
