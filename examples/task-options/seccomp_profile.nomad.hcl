# seccomp_profile: a file of the host, in docker's format, that says which system calls the task may make. The one here
# allows all but the making of directories.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

variable "directory" {
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

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "mkdir /tmp/new 2>&1 | grep -q \"Read-only file system\" && touch /tmp/new"]

        seccomp         = true
        seccomp_profile = "${var.directory}/seccomp.json"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
