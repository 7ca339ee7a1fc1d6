# image_pull_policy: "missing" pulls what is not here, "always" asks the registry what the tag stands for by now, and "never"
# takes what is here: the first task has brought it for the second.
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

    task "bring" {
      driver = "containerd-driver"

      lifecycle {
        hook = "prestart"
      }

      config {
        image   = var.image
        command = "true"

        image_pull_policy = "missing"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "test -e /bin/busybox"]

        image_pull_policy = "never"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
