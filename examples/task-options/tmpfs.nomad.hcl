# tmpfs: file systems in memory, target[:options]. They are nosuid, nodev and noexec unless they say suid, dev or exec.
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
        args    = ["-c", "touch /run/x && grep -q '/run tmpfs .*noexec.*size=1024k' /proc/mounts && grep '/scratch tmpfs' /proc/mounts | grep -vq noexec"]

        tmpfs = ["/run:size=1m,mode=1777", "/scratch:exec"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
