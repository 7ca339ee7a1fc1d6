# image_pull_timeout: how long an image that is not there may take. Past it the start fails, and Nomad tries again by the
# restart policy.
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
        args    = ["-c", "test -e /bin/busybox"]

        image_pull_timeout = "2m"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
