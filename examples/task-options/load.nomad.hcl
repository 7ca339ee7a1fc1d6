# load: the image comes from an archive in the task's directory.
# The address of an archive on a server: `docker save busybox:saved -o busybox.tar`.
variable "archive" {
  type = string
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

      artifact {
        source      = var.archive
        destination = "local/busybox.tar"
        mode        = "file"

        # As it is, not unpacked.
        options {
          archive = false
        }
      }

      config {
        image   = "busybox:saved"
        load    = "busybox.tar"
        command = "sh"
        args    = ["-c", "test -e /bin/busybox"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
