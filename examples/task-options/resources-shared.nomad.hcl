# Nomad's own resources: cpu is a weight among tasks, memory_max = -1 lets its memory grow as far as the machine has it.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "option" {
  type = "batch"

  group "main" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "cd /sys/fs/cgroup; grep -qsx -e 512 -e 20 cpu/cpu.shares .$(sed -n s/^0:://p /proc/self/cgroup)/cpu.weight && grep -qsx -e max -e 9223372036854771712 memory/memory.limit_in_bytes .$(sed -n s/^0:://p /proc/self/cgroup)/memory.max"]
      }

      resources {
        cpu        = 512
        memory     = 32
        memory_max = -1
      }
    }
  }
}
