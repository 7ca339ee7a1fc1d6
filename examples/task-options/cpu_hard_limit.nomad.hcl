# cpu_hard_limit and cpu_cfs_period: no more processor time than the job's cpu, measured by a period in microseconds.
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
        args    = ["-c", "cd /sys/fs/cgroup; cat cpu/cpu.cfs_period_us .$(sed -n s/^0:://p /proc/self/cgroup)/cpu.max 2> /dev/null | grep -q '50000$'"]

        cpu_hard_limit = true
        cpu_cfs_period = 50000
      }

      resources {
        cpu    = 500
        memory = 32
      }
    }
  }
}
