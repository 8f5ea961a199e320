package main

import (
	"os"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// machine wraps a machine for one session; the shared registry keeps the plain one.
type machine struct {
	*simulator.VirtualMachine
	world *world
}

func (m *machine) PowerOnVMTask(ctx *simulator.Context, request *types.PowerOnVM_Task) soap.HasFault {
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: m.task(ctx, "PowerOnVM_Task", func() (types.AnyType, types.BaseMethodFault) {
		fresh := m.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff
		if fresh {
			if fault := m.world.refuseDisks(m.VirtualMachine, m.Config.Hardware.Device); fault != nil {
				return nil, fault
			}
			if err := m.world.launch(m.VirtualMachine); err != nil {
				return nil, &types.GenericVmConfigFault{Reason: err.Error()}
			}
		}
		result, fault := wait(ctx, m.VirtualMachine.PowerOnVMTask(ctx, request).(*methods.PowerOnVM_TaskBody).Res.Returnval)
		if guest := m.world.guest(m.Self); guest != nil && fault == nil {
			guest.command("cont")
		}
		return result, fault
	})}}
}

func (m *machine) PowerOffVMTask(ctx *simulator.Context, request *types.PowerOffVM_Task) soap.HasFault {
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: m.task(ctx, "PowerOffVM_Task", func() (types.AnyType, types.BaseMethodFault) {
		guest := m.world.guest(m.Self)
		result, fault := wait(ctx, m.VirtualMachine.PowerOffVMTask(ctx, request).(*methods.PowerOffVM_TaskBody).Res.Returnval)
		if guest != nil && fault == nil {
			guest.kill()
			<-guest.ended
		}
		return result, fault
	})}}
}

func (m *machine) SuspendVMTask(ctx *simulator.Context, request *types.SuspendVM_Task) soap.HasFault {
	if guest := m.world.guest(m.Self); guest != nil {
		guest.command("stop")
	}
	return m.VirtualMachine.SuspendVMTask(ctx, request)
}

// ShutdownGuest asks the guest as its tools would; without tools there is nobody to ask.
func (m *machine) ShutdownGuest(ctx *simulator.Context, request *types.ShutdownGuest) soap.HasFault {
	guest := m.world.guest(m.Self)
	m.world.mutex.Lock()
	mute := m.world.mute[m.Config.InstanceUuid]
	m.world.mutex.Unlock()
	if guest == nil && !mute {
		return m.VirtualMachine.ShutdownGuest(ctx, request)
	}
	body := &methods.ShutdownGuestBody{}
	if mute || !guest.ready.Load() {
		body.Fault_ = simulator.Fault("VMware Tools is not running in this virtual machine", &types.ToolsUnavailable{})
		return body
	}
	guest.command("system_powerdown") // Its end is seen as poweredOff.
	body.Res = &types.ShutdownGuestResponse{}
	return body
}

func (m *machine) ReconfigVMTask(ctx *simulator.Context, request *types.ReconfigVM_Task) soap.HasFault {
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: m.task(ctx, "ReconfigVM_Task", func() (types.AnyType, types.BaseMethodFault) {
		for _, change := range request.Spec.DeviceChange {
			spec := change.GetVirtualDeviceConfigSpec()
			if m.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff && spec.Operation == "add" && spec.FileOperation == "" {
				if fault := m.world.refuseDisks(m.VirtualMachine, []types.BaseVirtualDevice{spec.Device}); fault != nil {
					return nil, fault
				}
			}
		}
		result, fault := wait(ctx, m.VirtualMachine.ReconfigVMTask(ctx, request).(*methods.ReconfigVM_TaskBody).Res.Returnval)
		for _, disk := range disksOf(m.Config.Hardware.Device) { // A new disk has its size.
			bytes := flat(m.world.hostPath(fileOf(disk)))
			if found, err := os.Stat(bytes); err == nil && found.Size() < disk.CapacityInBytes {
				_ = os.Truncate(bytes, disk.CapacityInBytes)
			}
		}
		return result, fault
	})}}
}

// DestroyTask deletes the files of the disks that are attached, as a real vCenter does and the public simulator does not.
func (m *machine) DestroyTask(ctx *simulator.Context, request *types.Destroy_Task) soap.HasFault {
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: m.task(ctx, "Destroy_Task", func() (types.AnyType, types.BaseMethodFault) {
		attached := disksOf(m.Config.Hardware.Device)
		result, fault := wait(ctx, m.VirtualMachine.DestroyTask(ctx, request).(*methods.Destroy_TaskBody).Res.Returnval)
		if fault == nil {
			for _, disk := range attached {
				path := m.world.hostPath(fileOf(disk))
				_ = os.Remove(path)
				_ = os.Remove(flat(path))
			}
		}
		return result, fault
	})}}
}

func (m *machine) task(ctx *simulator.Context, name string, run func() (types.AnyType, types.BaseMethodFault)) types.ManagedObjectReference {
	return simulator.CreateTask(m.Reference(), strings.TrimSuffix(name, "_Task"), func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if fault := m.world.takeFailure(name); fault != nil {
			return nil, fault
		}
		return run()
	}).Run(ctx)
}

// wait for an inner task on the same context, which shares its locks.
func wait(ctx *simulator.Context, reference types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	task := ctx.Map.Get(reference).(*simulator.Task)
	task.Wait()
	if task.Info.Error != nil {
		return nil, task.Info.Error.Fault
	}
	return task.Info.Result, nil
}

// refuseDisks: a file is open in one running machine at a time, and must be there.
func (w *world) refuseDisks(self *simulator.VirtualMachine, devices []types.BaseVirtualDevice) types.BaseMethodFault {
	for _, disk := range disksOf(devices) {
		file := fileOf(disk)
		if _, err := os.Stat(w.hostPath(file)); err != nil {
			return &types.FileNotFound{FileFault: types.FileFault{File: file}}
		}
		for _, it := range w.registry.All("VirtualMachine") {
			other := it.(*simulator.VirtualMachine)
			if other.Self == self.Self || other.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
				continue
			}
			for _, held := range disksOf(other.Config.Hardware.Device) {
				if fileOf(held) == file {
					return &types.FileLocked{FileFault: types.FileFault{File: file}}
				}
			}
		}
	}
	return nil
}

func disksOf(devices []types.BaseVirtualDevice) (disks []*types.VirtualDisk) {
	for _, device := range devices {
		if disk, ok := device.(*types.VirtualDisk); ok {
			if _, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
				disks = append(disks, disk)
			}
		}
	}
	return disks
}

func fileOf(disk *types.VirtualDisk) string {
	return disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName
}

// flat is the file with a disk's bytes, beside its descriptor.
func flat(path string) string { return strings.TrimSuffix(path, ".vmdk") + "-flat.vmdk" }
