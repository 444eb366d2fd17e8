// Listens, and holds one connection to the Redis at the given port until its input ends.
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;

public class Hold {
    public static void main(String[] args) throws Exception {
        InetAddress loopback = InetAddress.getLoopbackAddress();
        try (ServerSocket server = new ServerSocket(0, 10, loopback);
             Socket redis = new Socket(loopback, Integer.parseInt(args[0]))) {
            OutputStream out = redis.getOutputStream();
            InputStream in = redis.getInputStream();
            out.write("PING\r\n".getBytes());
            in.readNBytes("+PONG\r\n".length());
            System.out.println("local_port=" + redis.getLocalPort());
            System.in.read();
        }
    }
}
