# apparmor_profile: the AppArmor profile that confines the task, which has to be loaded on the host; "unconfined" for none. On
# a host without AppArmor only "unconfined" is accepted.
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
        args    = ["-c", "test ! -e /sys/module/apparmor || grep -q unconfined /proc/self/attr/current"]

        apparmor_profile = "unconfined"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
