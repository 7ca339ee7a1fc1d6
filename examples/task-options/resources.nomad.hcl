# Nomad's own resources: cores is processors of the task's own, memory_max is how far its memory may grow above memory.
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
        args    = ["-c", "cd /sys/fs/cgroup; grep -q 'Cpus_allowed_list:.[0-9]$' /proc/self/status && cat memory/memory.limit_in_bytes .$(sed -n s/^0:://p /proc/self/cgroup)/memory.max 2> /dev/null | grep -q 67108864"]
      }

      resources {
        cores      = 1
        memory     = 32
        memory_max = 64
      }
    }
  }
}
