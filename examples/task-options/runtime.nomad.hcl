# runtime, oci_runtime: what makes the container, where it is not what the operator chose: the shim, by its runtime's name
# or its path, and the program that the shim runs. The operator has to allow others than these: allow_runtimes.
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

        runtime     = "io.containerd.runc.v2"
        oci_runtime = "runc"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
