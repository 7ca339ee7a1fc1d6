# cap_add and cap_drop: capabilities that the task has beyond, or short of, the default set. In any case, with CAP_ or
# without; "all" is all of them. What is in both lists is added.
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
        args    = ["-c", "grep -q \"^CapEff:[[:space:]]*0000000000201001$\" /proc/self/status"]

        cap_drop = ["all"]
        cap_add  = ["chown", "NET_ADMIN", "CAP_SYS_ADMIN"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
