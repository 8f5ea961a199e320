package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// world is one simulated vCenter and the guests that run in it.
type world struct {
	registry *simulator.Registry
	qemu     string
	isolated string

	creating sync.Mutex
	mutex    sync.Mutex
	guests   map[types.ManagedObjectReference]*guest
	consoles map[string]string                // Of each machine's last guest, by instance id.
	failures map[string]types.BaseMethodFault // The next task of this name ends with it.
	sessions map[string]bool
	calls    map[string]int
	mute     map[string]bool // Machines, by instance id, whose tools do not answer.

	registries map[*simulator.Registry]bool // Of sessions, with wrappers in them.
}

func newWorld(model *simulator.Model, qemu, isolated string) *world {
	w := &world{
		registry: model.Map(), qemu: qemu, isolated: isolated,
		guests:     map[types.ManagedObjectReference]*guest{},
		consoles:   map[string]string{},
		failures:   map[string]types.BaseMethodFault{},
		sessions:   map[string]bool{},
		calls:      map[string]int{},
		mute:       map[string]bool{},
		registries: map[*simulator.Registry]bool{},
	}
	w.registry.Handler = w.handle
	w.registry.AddHandler(watch{w})
	return w
}

// handle runs before every call, and sees to it that machines and folders answer through our wrappers.
func (w *world) handle(ctx *simulator.Context, call *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	w.mutex.Lock()
	w.calls[call.Name]++
	if ctx.Session != nil {
		w.sessions[ctx.Session.Key] = true
	}
	w.mutex.Unlock()
	if ctx.Session == nil {
		return nil, nil
	}
	var wrapper mo.Reference
	switch it := w.registry.Get(call.This).(type) {
	case *simulator.VirtualMachine:
		wrapper = &machine{it, w}
	case *simulator.Folder:
		wrapper = &folder{it, w}
	default:
		return nil, nil
	}
	// A session's own registry is looked at before the shared one. In the shared one a wrapper would panic at snapshots.
	own := ctx.Session.Registry
	if own.Get(call.This) == nil {
		own.Put(wrapper)
		w.mutex.Lock()
		w.registries[own] = true
		w.mutex.Unlock()
	}
	return nil, nil
}

// folder wraps a folder, to look and create as one step: of two that create the same name at once, one is refused.
type folder struct {
	*simulator.Folder
	world *world
}

func (f *folder) CreateVMTask(ctx *simulator.Context, request *types.CreateVM_Task) soap.HasFault {
	task := simulator.CreateTask(f.Reference(), "createVm", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		f.world.creating.Lock()
		defer f.world.creating.Unlock()
		if fault := f.world.refuseCreate(f.Self, &request.Config); fault != nil {
			return nil, fault
		}
		return wait(ctx, f.Folder.CreateVMTask(ctx, request).(*methods.CreateVM_TaskBody).Res.Returnval)
	})
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: task.Run(ctx)}}
}

// watch sees objects go, so that no session keeps the wrapper of a machine that was destroyed.
type watch struct{ *world }

func (watch) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Watch", Value: "watch"}
}
func (watch) PutObject(*simulator.Context, mo.Reference)                            {}
func (watch) UpdateObject(*simulator.Context, mo.Reference, []types.PropertyChange) {}
func (w watch) RemoveObject(ctx *simulator.Context, gone types.ManagedObjectReference) {
	w.mutex.Lock()
	registries := make([]*simulator.Registry, 0, len(w.registries))
	for one := range w.registries {
		registries = append(registries, one)
	}
	w.mutex.Unlock()
	for _, one := range registries {
		if one.Get(gone) != nil {
			one.Remove(ctx, gone)
		}
	}
}

// refuseCreate: what stops the public simulator altogether (an unknown network), and what only a real vCenter refuses.
func (w *world) refuseCreate(folder types.ManagedObjectReference, config *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	for _, change := range config.DeviceChange {
		card, ok := change.GetVirtualDeviceConfigSpec().Device.(types.BaseVirtualEthernetCard)
		if ok && w.networkOf(card) == "" {
			return &types.NotFound{}
		}
	}
	for _, entity := range w.registry.All("VirtualMachine") {
		other := entity.(*simulator.VirtualMachine)
		if other.Name == config.Name && other.Parent != nil && *other.Parent == folder {
			return &types.DuplicateName{Name: other.Name, Object: other.Self}
		}
	}
	return w.takeFailure("CreateVM_Task")
}

// networkOf is the name of the network that a card is in, or "" when there is no such network.
func (w *world) networkOf(card types.BaseVirtualEthernetCard) string {
	switch backing := card.GetVirtualEthernetCard().Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		for _, it := range w.registry.All("Network") {
			if network, ok := it.(*mo.Network); ok && network.Name == backing.DeviceName {
				return network.Name
			}
		}
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		for _, it := range w.registry.All("DistributedVirtualPortgroup") {
			if group, ok := it.(*simulator.DistributedVirtualPortgroup); ok && group.Key == backing.Port.PortgroupKey {
				return group.Name
			}
		}
	}
	return ""
}

// hostPath is where the bytes of "[datastore] path" are.
func (w *world) hostPath(name string) string {
	var path object.DatastorePath
	path.FromString(name)
	for _, it := range w.registry.All("Datastore") {
		if store := it.(*simulator.Datastore); store.Name == path.Datastore {
			return filepath.Join(store.Summary.Url, path.Path)
		}
	}
	return ""
}

func (w *world) takeFailure(name string) types.BaseMethodFault {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	fault := w.failures[name]
	delete(w.failures, name)
	return fault
}

// serveControl: what a test does to the world, and sees of it, from outside.
func (w *world) serveControl(mux *http.ServeMux) {
	// ?task=PowerOnVM_Task&fault=NoDiskSpace: the next such task fails.
	mux.HandleFunc("/test/fail", func(out http.ResponseWriter, in *http.Request) {
		kind, ok := types.TypeFunc()(in.FormValue("fault"))
		if !ok {
			http.Error(out, "no such fault", http.StatusBadRequest)
			return
		}
		fault := reflect.New(kind)
		if fields := in.FormValue("fields"); fields != "" {
			if err := json.Unmarshal([]byte(fields), fault.Interface()); err != nil {
				http.Error(out, err.Error(), http.StatusBadRequest)
				return
			}
		}
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.failures[in.FormValue("task")] = fault.Interface().(types.BaseMethodFault)
	})
	// Every session ends, as after a restart of vCenter.
	mux.HandleFunc("/test/end-sessions", func(http.ResponseWriter, *http.Request) {
		w.mutex.Lock()
		keys := make([]string, 0, len(w.sessions))
		for key := range w.sessions {
			keys = append(keys, key)
		}
		clear(w.sessions)
		w.mutex.Unlock()
		manager := w.registry.SessionManager()
		outside := &simulator.Context{Session: &simulator.Session{}, Map: w.registry}
		manager.TerminateSession(outside, &types.TerminateSession{This: manager.Self, SessionId: keys})
	})
	// How often each method was called.
	mux.HandleFunc("/test/calls", func(out http.ResponseWriter, _ *http.Request) {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		_ = json.NewEncoder(out).Encode(w.calls)
	})
	// ?id=INSTANCE-UUID: the guest behind a machine.
	mux.HandleFunc("/test/guest", func(out http.ResponseWriter, in *http.Request) {
		if guest := w.guestOf(in.FormValue("id")); guest != nil {
			_ = json.NewEncoder(out).Encode(map[string]any{"pid": guest.pid(), "port": guest.port})
			return
		}
		http.Error(out, "no guest", http.StatusNotFound)
	})
	// ?id=INSTANCE-UUID: what the last guest of a machine said on its console.
	mux.HandleFunc("/test/console", func(out http.ResponseWriter, in *http.Request) {
		w.mutex.Lock()
		path := w.consoles[in.FormValue("id")]
		w.mutex.Unlock()
		text, _ := os.ReadFile(path)
		_, _ = out.Write(text)
	})
	// ?id=INSTANCE-UUID: its processor stops, with nothing said.
	mux.HandleFunc("/test/pull", func(out http.ResponseWriter, in *http.Request) {
		if guest := w.guestOf(in.FormValue("id")); guest != nil {
			guest.kill()
			return
		}
		http.Error(out, "no guest", http.StatusNotFound)
	})
	// ?id=INSTANCE-UUID: nobody in the machine listens any more.
	mux.HandleFunc("/test/mute", func(_ http.ResponseWriter, in *http.Request) {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.mute[in.FormValue("id")] = true
	})
	// ?id=INSTANCE-UUID&name=NAME: a person renames a machine.
	mux.HandleFunc("/test/rename", func(_ http.ResponseWriter, in *http.Request) {
		for _, it := range w.registry.All("VirtualMachine") {
			if vm := it.(*simulator.VirtualMachine); vm.Config.InstanceUuid == in.FormValue("id") {
				w.change(vm.Self, types.PropertyChange{Name: "name", Val: in.FormValue("name")})
			}
		}
	})
	// Every machine there is, as "NAME INSTANCE-UUID".
	mux.HandleFunc("/test/machines", func(out http.ResponseWriter, _ *http.Request) {
		for _, it := range w.registry.All("VirtualMachine") {
			vm := it.(*simulator.VirtualMachine)
			fmt.Fprintln(out, strings.ReplaceAll(vm.Name, " ", "_"), vm.Config.InstanceUuid)
		}
	})
}

func (w *world) guestOf(instance string) *guest {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for reference, guest := range w.guests {
		if vm, ok := w.registry.Get(reference).(*simulator.VirtualMachine); ok && vm.Config.InstanceUuid == instance {
			return guest
		}
	}
	return nil
}
