# logs { disabled = true }, which is Nomad's own: the output goes nowhere, and nobody has to read it for the task to go on.
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
        args    = ["-c", "head -c 1000000 /dev/zero"]
      }

      logs {
        disabled = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
