# snapshotter: which of containerd's snapshotters makes the task's file system. The native one copies the image's files, so the
# root is a directory of the host and no overlay.
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
        args    = ["-c", "awk '$5 == \"/\" { exit $4 == \"/\" }' /proc/self/mountinfo"]

        snapshotter = "native"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
