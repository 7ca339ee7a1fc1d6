# cpuset_cpus and cpuset_mems: the processors that the task runs on, and the memory nodes that its memory is on.
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
        args    = ["-c", "grep -q 'Cpus_allowed_list:.0$' /proc/self/status && grep -q 'Mems_allowed_list:.0$' /proc/self/status"]

        cpuset_cpus = "0"
        cpuset_mems = "0"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
