# no_new_privileges = true: no program that the task runs gains rights by its owner's bit or its file's capabilities.
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
        args    = ["-c", "grep -q \"^NoNewPrivs:[[:space:]]*1$\" /proc/self/status"]

        no_new_privileges = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
